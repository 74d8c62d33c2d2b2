//! The AWS credential chain and the proxy variables, as the environment of a real worker: its
//! model is in S3, so that the first thing it does is to ask the store.

use std::process::Output;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};

use super::recorder::{Answer, Recorder, Request};

/// A bucket in which nothing is.
const EMPTY: &str = "<ListBucketResult><Name>lake</Name><KeyCount>0</KeyCount></ListBucketResult>";

/// A store that answers 503 `failures` times, then that it has nothing.
fn store(failures: usize) -> Recorder {
    Recorder::start(move |number, _| match number < failures {
        true => Answer::new(503, "<Error><Code>ServiceUnavailable</Code></Error>"),
        false => Answer::new(200, EMPTY),
    })
}

/// Runs a worker on an empty bucket with nothing of AWS in its environment but `variables`.
fn run(endpoint: &str, variables: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("worker.yaml");
    let yaml = format!(
        "kafka:\n  brokers: 127.0.0.1:1\nmodel:\n  path: s3://lake/tiny\n\
         s3:\n  endpoint: {endpoint}\n  force_path_style: true\n  max_attempts: 3\n  \
         backoff_initial_ms: 1\n  backoff_max_ms: 1\nhttp:\n  listen: 127.0.0.1:0\n"
    );
    std::fs::write(&config, yaml).unwrap();
    let mut command = kit::fusioncap(&["worker", "--config"]);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_uppercase();
        if text.starts_with("AWS_") || text.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
    command
        .arg(&config)
        .env("HOME", home.path())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The access keys of the requests, in their order.
fn signers(store: &Recorder) -> Vec<String> {
    store.requests().iter().map(|request| request.access_key().to_owned()).collect()
}

/// Credentials number `number`, as a container's endpoint gives them.
fn credentials(number: usize, lifetime: SignedDuration) -> String {
    let expiration = Timestamp::try_from(SystemTime::now()).unwrap() + lifetime;
    format!(
        "{{\"AccessKeyId\": \"KEY{number}\", \"SecretAccessKey\": \"hidden-{number}\", \
         \"Token\": \"token-{number}\", \"Expiration\": \"{expiration:.0}\"}}"
    )
}

#[test]
fn credentials_come_from_the_environment() {
    let store = store(0);
    let variables = [
        ("AWS_ACCESS_KEY_ID", "FROMENV"),
        ("AWS_SECRET_ACCESS_KEY", "hidden-secret"),
        ("AWS_SESSION_TOKEN", "the-token"),
    ];
    let output = run(&store.url(), &variables);
    assert!(text(&output).contains("nothing is stored"), "{}", text(&output));
    assert_eq!(signers(&store), ["FROMENV"]);
    assert_eq!(store.last().header("x-amz-security-token"), Some("the-token"));
    assert!(!text(&output).contains("hidden-secret"));
}

#[test]
fn credentials_come_from_a_shared_file() {
    let (store, folder) = (store(0), tempfile::tempdir().unwrap());
    let file = folder.path().join("credentials");
    let profile = "[captions]\naws_access_key_id = FROMFILE\naws_secret_access_key = hidden\n";
    std::fs::write(&file, profile).unwrap();
    let path = file.to_str().unwrap();
    let variables = [("AWS_SHARED_CREDENTIALS_FILE", path), ("AWS_PROFILE", "captions")];
    run(&store.url(), &variables);
    assert_eq!(signers(&store), ["FROMFILE"]);
}

/// As EKS Pod Identity and ECS give them; they are asked for once while they hold.
#[test]
fn credentials_come_from_a_container_endpoint() {
    let store = store(2);
    let endpoint = Recorder::start(|number, _| {
        Answer::new(200, credentials(number, SignedDuration::from_hours(1)))
    });
    let uri = format!("{}/v1/credentials", endpoint.url());
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod-token"),
    ];
    let output = run(&store.url(), &variables);
    let asked = endpoint.requests();
    assert!(!asked.is_empty(), "{}", text(&output));
    assert!(asked.iter().all(|request| request.header("authorization") == Some("pod-token")));
    let signers = signers(&store);
    assert_eq!(signers.len(), 3, "{}", text(&output));
    assert!(signers.iter().all(|key| *key == signers[0]), "{signers:?}");
    assert!(!text(&output).contains("hidden-"));
}

/// Credentials that end within seconds are replaced before the next request is signed.
#[test]
fn credentials_that_expire_are_asked_for_again() {
    let store = store(2);
    let endpoint = Recorder::start(|number, _| {
        Answer::new(200, credentials(number, SignedDuration::from_secs(2)))
    });
    let uri = format!("{}/v1/credentials", endpoint.url());
    let output = run(&store.url(), &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str())]);
    let mut signers = signers(&store);
    assert_eq!(signers.len(), 3, "{}", text(&output));
    signers.dedup();
    assert_eq!(signers.len(), 3, "old credentials were used again: {signers:?}");
    let last = store.last();
    let number = last.access_key().strip_prefix("KEY").unwrap().to_owned();
    assert_eq!(last.header("x-amz-security-token"), Some(format!("token-{number}").as_str()));
}

/// As EKS gives a service account its role (IRSA): a token in a file, exchanged at STS.
#[test]
fn credentials_come_from_a_web_identity() {
    let (store, folder) = (store(0), tempfile::tempdir().unwrap());
    let token = folder.path().join("token");
    std::fs::write(&token, "service-account-token").unwrap();
    let sts = Recorder::start(|_, _| {
        let expiration = Timestamp::now() + SignedDuration::from_hours(1);
        let body = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>FROMSTS</AccessKeyId>\
             <SecretAccessKey>hidden</SecretAccessKey><SessionToken>sts-token</SessionToken>\
             <Expiration>{expiration:.0}</Expiration></Credentials>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        );
        Answer::new(200, body).with("Content-Type", "text/xml")
    });
    let (url, path) = (sts.url(), token.to_str().unwrap());
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", path),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/captions"),
        ("AWS_ENDPOINT_URL_STS", url.as_str()),
    ];
    let output = run(&store.url(), &variables);
    assert_eq!(signers(&store), ["FROMSTS"], "{}", text(&output));
    assert_eq!(store.last().header("x-amz-security-token"), Some("sts-token"));
    let asked: Vec<Request> = sts.requests();
    let body = &asked[0].body;
    assert!(body.contains("Action=AssumeRoleWithWebIdentity"), "{body}");
    assert!(body.contains("WebIdentityToken=service-account-token"), "{body}");
    assert!(body.contains("role%2Fcaptions"), "{body}");
}

#[test]
fn no_credentials_at_all_is_said() {
    let store = store(0);
    let output = run(&store.url(), &[]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("no S3 credentials"), "{}", text(&output));
    assert_eq!(store.connections(), 0);
}

/// The SDK's client takes `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, as curl does.
#[test]
fn proxy_variables_are_honoured() {
    let proxy = store(0);
    let url = proxy.url();
    let keys = [("AWS_ACCESS_KEY_ID", "KEY"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    let through = [&keys[..], &[("HTTP_PROXY", url.as_str())]].concat();
    run("http://store.invalid:9000", &through);
    let request = proxy.last();
    assert!(request.target.starts_with("http://store.invalid:9000/lake"), "{}", request.target);

    let direct = store(0);
    let before = proxy.connections();
    let around = [&through[..], &[("NO_PROXY", "127.0.0.1")]].concat();
    run(&direct.url(), &around);
    assert_eq!((direct.requests().len(), proxy.connections()), (1, before));
}
