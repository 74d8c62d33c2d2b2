//! Failures of the object store as errors: HTTP status and S3 error code to `ErrorKind`.
//!
//! The status decides. The error code decides only where a status has several meanings (400, 403,
//! 404, 503): S3-compatible stores agree on statuses far more than on codes.

use std::error::Error as StdError;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStreamError;

use crate::error::{Error, ErrorKind};

/// For a bucket in another region, or another server at the endpoint.
const REDIRECTED: &str = "the object store answers with a redirect, which is not followed: \
    check s3.region and s3.endpoint";

/// The error of a failed request.
pub fn classify<E>(error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let kind = match &error {
        SdkError::TimeoutError(_) => ErrorKind::FetchTimeout,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => ErrorKind::FetchTimeout,
        SdkError::ConstructionFailure(_) => ErrorKind::ObjectNotFound,
        SdkError::ServiceError(failure) => {
            kind_of(failure.raw().status().as_u16(), failure.err().code())
        }
        _ => ErrorKind::FetchUnavailable,
    };
    let redirected = matches!(&error, SdkError::ServiceError(failure)
        if (300..400).contains(&failure.raw().status().as_u16()));
    let failure = Error::new(kind, if redirected { REDIRECTED } else { message(kind) });
    let failure = match error.raw_response() {
        Some(response) => failure.with_context("status", response.status().as_u16()),
        None => failure,
    };
    let failure = match error.as_service_error().and_then(ProvideErrorMetadata::code) {
        Some(code) => failure.with_context("code", code),
        None => failure,
    };
    failure.with_source(error)
}

/// The error of a body that ends early or fails its checksum.
pub fn body_error(error: ByteStreamError) -> Error {
    Error::new(ErrorKind::FetchUnavailable, "the object's body can't be read to its end")
        .with_source(error)
}

/// The kind of a response with `status` and, in its body, S3's error `code`.
fn kind_of(status: u16, code: Option<&str>) -> ErrorKind {
    match (status, code.unwrap_or_default()) {
        (429, _)
        | (_, "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded") => {
            ErrorKind::FetchThrottled
        }
        (408, _) | (_, "RequestTimeout") => ErrorKind::FetchTimeout,
        (412, _) => ErrorKind::EtagMismatch,
        // The credentials are at fault, not the object: 400 on some stores, 403 on others.
        (401, _)
        | (
            400 | 403,
            "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "AuthorizationHeaderMalformed"
            | "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "RequestTimeTooSkewed"
            | "InvalidSecurity"
            | "NotSignedUp",
        ) => ErrorKind::CredentialsRefused,
        (403, _) => ErrorKind::AccessDenied,
        (500..=599, _) => ErrorKind::FetchUnavailable,
        // Every other refusal means that the object can't be read: a missing key or bucket, a
        // version id of another bucket (400), a deleted version (405), another region (301).
        _ => ErrorKind::ObjectNotFound,
    }
}

const fn message(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::FetchThrottled => "the object store asked to slow down",
        ErrorKind::FetchTimeout => "the object store did not answer in time",
        ErrorKind::EtagMismatch => "the object has changed since the reference was written",
        ErrorKind::AccessDenied => "the object store refused access",
        ErrorKind::CredentialsRefused => "the object store refused the credentials",
        ErrorKind::FetchUnavailable => "the object store is not available",
        _ => "the object does not exist",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_kinds() {
        let cases = [
            (404, Some("NoSuchKey"), ErrorKind::ObjectNotFound),
            (404, Some("NoSuchBucket"), ErrorKind::ObjectNotFound),
            (404, None, ErrorKind::ObjectNotFound),
            (405, Some("MethodNotAllowed"), ErrorKind::ObjectNotFound),
            (400, Some("InvalidArgument"), ErrorKind::ObjectNotFound),
            (301, Some("PermanentRedirect"), ErrorKind::ObjectNotFound),
            (403, Some("AccessDenied"), ErrorKind::AccessDenied),
            (403, Some("SignatureDoesNotMatch"), ErrorKind::CredentialsRefused),
            (403, None, ErrorKind::AccessDenied),
            (401, None, ErrorKind::CredentialsRefused),
            (400, Some("ExpiredToken"), ErrorKind::CredentialsRefused),
            (412, Some("PreconditionFailed"), ErrorKind::EtagMismatch),
            (503, Some("SlowDown"), ErrorKind::FetchThrottled),
            (429, None, ErrorKind::FetchThrottled),
            (503, Some("ServiceUnavailable"), ErrorKind::FetchUnavailable),
            (503, None, ErrorKind::FetchUnavailable),
            (500, Some("InternalError"), ErrorKind::FetchUnavailable),
            (504, None, ErrorKind::FetchUnavailable),
            (400, Some("RequestTimeout"), ErrorKind::FetchTimeout),
            (408, None, ErrorKind::FetchTimeout),
        ];
        for (status, code, expected) in cases {
            assert_eq!(kind_of(status, code), expected, "{status} {code:?}");
        }
    }

    #[test]
    fn every_kind_can_end_as_a_dead_letter() {
        for status in 100..600 {
            assert!(ErrorKind::DEAD_LETTERS.contains(&kind_of(status, None)), "{status}");
        }
    }
}
