//! The object store as if it were far away, so that a backlog lasts and a fault meets work.

use std::time::Duration;

use kit::bucket::Bucket;
use kit::process::Configuration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The delay of each piece of an answer.
const DELAY: Duration = Duration::from_millis(100);
/// Requests under way at once: with the delay, at most 80 objects a second.
const CONCURRENCY: &str = "s3:\n  concurrency: 8\n";

/// The same worker, with the bucket's own server at a distance and each reference a request.
pub async fn distant(configuration: Configuration, bucket: &Bucket) -> Configuration {
    let endpoint = &bucket.access().endpoint;
    let server = endpoint.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            if let Ok(server) = TcpStream::connect(&server).await {
                tokio::spawn(carry(client, server));
            }
        }
    });
    configuration.with_store(bucket, address).replacing("s3:\n", CONCURRENCY).without_coalescing()
}

/// Passes requests on at once and answers late, until either side closes.
async fn carry(client: TcpStream, server: TcpStream) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let answers = async {
        let mut piece = vec![0; 64 * 1024];
        loop {
            let length = from_server.read(&mut piece).await?;
            if length == 0 {
                return std::io::Result::Ok(());
            }
            tokio::time::sleep(DELAY).await;
            to_client.write_all(&piece[..length]).await?;
        }
    };
    // A connection that breaks is the client's to make again.
    let _ = tokio::select! { end = requests => end, end = answers => end };
}
