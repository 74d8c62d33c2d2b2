//! The folder that the S3 server serves. `s3s-fs` sends a file in pieces of 4 kB, each a task of
//! the blocking pool; here a whole object is read at once.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use s3s::dto::{
    CreateBucketInput, CreateBucketOutput, DeleteObjectInput, DeleteObjectOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListBucketsInput, ListBucketsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
    ListObjectsV2Output, PutObjectInput, PutObjectOutput, StreamingBlob,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

/// Buckets are folders of the root, objects files in them.
pub struct Files {
    inner: FileSystem,
    root: PathBuf,
}

impl Files {
    pub fn new(root: &Path) -> Self {
        Self { inner: FileSystem::new(root).unwrap(), root: root.to_owned() }
    }
}

/// Passes each call on as it is.
macro_rules! pass {
    ($($name:ident: $input:ident -> $output:ident,)*) => {
        #[async_trait]
        impl S3 for Files {
            $(async fn $name(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.inner.$name(request).await
            })*

            async fn get_object(
                &self,
                request: S3Request<GetObjectInput>,
            ) -> S3Result<S3Response<GetObjectOutput>> {
                let input = &request.input;
                let path = self.root.join(&*input.bucket).join(&*input.key);
                let whole = input.range.is_none();
                // It has checked that the file is below the root.
                let mut answer = self.inner.get_object(request).await?;
                if whole && let Ok(bytes) = tokio::fs::read(path).await {
                    answer.output.body = Some(StreamingBlob::from(Body::from(bytes)));
                }
                Ok(answer)
            }
        }
    };
}

pass! {
    create_bucket: CreateBucketInput -> CreateBucketOutput,
    head_bucket: HeadBucketInput -> HeadBucketOutput,
    list_buckets: ListBucketsInput -> ListBucketsOutput,
    put_object: PutObjectInput -> PutObjectOutput,
    head_object: HeadObjectInput -> HeadObjectOutput,
    delete_object: DeleteObjectInput -> DeleteObjectOutput,
    list_objects: ListObjectsInput -> ListObjectsOutput,
    list_objects_v2: ListObjectsV2Input -> ListObjectsV2Output,
}
