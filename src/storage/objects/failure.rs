//! Why a request failed, and what is to be said about it.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::{Error, Result};
use crate::interrupt::interrupted;

use super::advice;
use super::credentials::NoCredentials;
use super::refusal::Refusal;
use super::settings::{Location, Scheme, Settings};

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    LookAt,
    Write,
    Copy,
    Delete,
    List,
    ListVersions,
    ListUploads,
    Abort,
}

impl Action {
    pub(super) fn verb(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::LookAt => "look at",
            Action::Write => "write",
            Action::Copy => "copy",
            Action::Delete => "delete",
            Action::List => "list",
            Action::ListVersions => "list the versions of",
            Action::ListUploads => "list the unfinished uploads of",
            Action::Abort => "abort the upload of",
        }
    }

    /// What the store's owner has to allow for it.
    fn permission(self) -> &'static str {
        match self {
            Action::Read => "s3:GetObject",
            // Without the second one, what is not there is refused as well.
            Action::LookAt => "s3:GetObject and s3:ListBucket",
            Action::Write => "s3:PutObject",
            Action::Copy => "s3:GetObject and s3:PutObject",
            Action::Delete => "s3:DeleteObject",
            Action::List => "s3:ListBucket",
            Action::ListVersions => "s3:ListBucketVersions and s3:GetObjectVersion",
            Action::ListUploads => "s3:ListBucketMultipartUploads",
            Action::Abort => "s3:AbortMultipartUpload",
        }
    }

    /// Whether that is a permission on the bucket, rather than on what is in it.
    fn is_of_bucket(self) -> bool {
        matches!(
            self,
            Action::List | Action::ListVersions | Action::ListUploads
        )
    }
}

/// Why a request failed.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// It was time to stop.
    Interrupted,
    /// The store answered that it would not.
    Refused(Refusal),
    /// There was no answer, or none to its end.
    Lost {
        reason: String,
        /// No connection was made, so that the store has seen nothing of it.
        is_unsent: bool,
    },
    /// Whoever answers does not prove to be the store.
    Untrusted(String),
    /// Nobody says who pgkeep is.
    NoCredentials(Error),
    /// The answer makes no sense.
    Odd(String),
}

impl Failure {
    /// What an error of the store's comes of.
    pub(super) fn of(error: &(dyn StdError + 'static)) -> Failure {
        let mut next = Some(error);
        let mut http: Option<&HttpError> = None;
        while let Some(error) = next {
            if let Some(refusal) = error.downcast_ref::<Refusal>() {
                return Failure::Refused(refusal.clone());
            }
            if let Some(NoCredentials(error)) = error.downcast_ref() {
                return Failure::NoCredentials(error.clone());
            }
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Failure::Untrusted(error.to_string());
            }
            http = http.or(error.downcast_ref());
            next = inner(error);
        }
        match http {
            Some(http) => Failure::Lost {
                reason: innermost(http),
                is_unsent: http.kind() == HttpErrorKind::Connect,
            },
            None => Failure::Odd(innermost(error)),
        }
    }

    /// Whether another try may not meet it.
    pub(super) fn is_momentary(&self) -> bool {
        match self {
            Failure::Lost { .. } => true,
            Failure::Refused(refusal) => refusal.is_momentary(),
            _ => false,
        }
    }

    /// Whether the store may have done what it was asked all the same.
    pub(super) fn may_be_done(&self) -> bool {
        match self {
            Failure::Lost { is_unsent, .. } => !is_unsent,
            Failure::Refused(refusal) => refusal.status.is_server_error(),
            _ => false,
        }
    }

    /// In words for the operator: what could not be done, to what, and what helps.
    pub(super) fn error(&self, action: Action, url: &str, settings: &Settings) -> Error {
        let server = |why: &dyn fmt::Display| {
            Error::server(format!("cannot {} {url}: {why}", action.verb()))
        };
        let place = match &settings.endpoint {
            Some(endpoint) => endpoint.to_string(),
            None => settings.location.scheme.vendor().to_owned(),
        };
        let keys = settings.location.scheme.keys();
        match self {
            Failure::Interrupted => interrupted(),
            Failure::NoCredentials(error) => error
                .clone()
                .context(format!("cannot {} {url}", action.verb())),
            Failure::Lost { reason, .. } => server(&format!("{place} cannot be reached: {reason}"))
                .hint(format!("check {keys}endpoint, {keys}proxy and the network, then run the same command again"))
                .momentary(),
            Failure::Untrusted(reason) => server(&format!(
                "{place} does not prove who it is: {reason}"
            ))
            .hint(format!("name the certificate of the authority that vouches for it as {keys}ca, and the host in {keys}endpoint as that certificate does")),
            Failure::Odd(reason) => server(reason),
            Failure::Refused(refusal) if action == Action::Read && refusal.is_of_condition() => {
                Error::failed(format!("{url} was replaced while it was read"))
                    .hint("run the same command again")
                    .momentary()
            }
            Failure::Refused(refusal) if refusal.is_of_retention() => server(refusal)
                .hint("the store keeps it for as long as its bucket, or whoever locked it, has said")
                .of_retention(),
            Failure::Refused(refusal) => {
                let error = server(refusal);
                let advice = match settings.location.scheme {
                    Scheme::S3 => advice(refusal, action, &settings.location),
                    Scheme::Azure => advice::of_azure(refusal, action, settings),
                    Scheme::Google => advice::of_google(refusal, action, &settings.location),
                };
                let error = match advice {
                    Some(advice) => error.hint(advice),
                    None => error,
                };
                match refusal.is_momentary() {
                    true => error.momentary(),
                    false => error,
                }
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Interrupted => f.write_str("interrupted"),
            Failure::Refused(refusal) => fmt::Display::fmt(refusal, f),
            Failure::NoCredentials(error) => fmt::Display::fmt(error, f),
            Failure::Lost { reason, .. } | Failure::Untrusted(reason) | Failure::Odd(reason) => {
                f.write_str(reason)
            }
        }
    }
}

/// What an error wraps.
fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>() {
        // Its own source() is that of what it wraps, and would pass that over.
        Some(wrapping) => wrapping
            .get_ref()
            .map(|inner| inner as &(dyn StdError + 'static)),
        None => error.source(),
    }
}

/// The words of the error that started it; those around it tell of our own machinery.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(next) = inner(error) {
        error = next;
    }
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// What helps against a refusal of S3.
fn advice(refusal: &Refusal, action: Action, location: &Location) -> Option<String> {
    let bucket = &location.bucket;
    let said = match refusal.code.as_str() {
        "NoSuchBucket" => format!(
            "create the bucket {bucket}, or correct base_dir, s3_endpoint and s3_region"
        ),
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidSecurity" | "UnauthorizedAccess" => {
            "correct the credentials: the access key and its secret are not what the store knows".to_owned()
        }
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            "get new credentials: those of this session are no longer good".to_owned()
        }
        "RequestTimeTooSkewed" => "set the clock of this machine".to_owned(),
        "KeyTooLongError" => "the store allows names of up to 1024 bytes: shorten the folder in base_dir".to_owned(),
        "InvalidStorageClass" => "correct s3_storage_class".to_owned(),
        "InvalidObjectState" => "bring the object back from its archive first, and keep backups in a storage class that can be read at once".to_owned(),
        "NotImplemented" => "the store must be able to do what S3 does, conditional writes among it".to_owned(),
        code if code.starts_with("KMS") => "correct s3_kms_key, and allow kms:GenerateDataKey and kms:Decrypt with it".to_owned(),
        "XMinioStorageFull" | "QuotaExceeded" => "free some space there, then run the same command again".to_owned(),
        _ => match (refusal.status.as_u16(), &refusal.region) {
            (301 | 307 | 400, Some(region)) => format!("set s3_region = {region}"),
            (301 | 307, None) => "correct s3_endpoint and s3_region".to_owned(),
            (401, _) => "correct the credentials".to_owned(),
            (403, _) => {
                let what = match (action.is_of_bucket(), location.folder.as_str()) {
                    (true, _) => format!("arn:aws:s3:::{bucket}"),
                    (false, "") => format!("arn:aws:s3:::{bucket}/*"),
                    (false, folder) => format!("arn:aws:s3:::{bucket}/{folder}/*"),
                };
                format!("allow {} on {what} to these credentials", action.permission())
            }
            (404, _) => format!("create the bucket {bucket}, or correct base_dir and s3_endpoint"),
            (507, _) => "free some space there, then run the same command again".to_owned(),
            _ if refusal.is_momentary() => "run the same command again later".to_owned(),
            _ => return None,
        },
    };
    Some(said)
}

/// A thing that the store has no answer for.
pub(super) fn absent(action: Action, url: &str) -> Error {
    Error::absent(format!("cannot {} {url}: it is not there", action.verb()))
}

/// What a request came to, where that nothing is there is an answer as well.
pub(super) fn or_absent<T>(result: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Failure::Refused(refusal)) if refusal.is_of_absence() => Ok(None),
        Err(failure) => Err(failure),
    }
}
