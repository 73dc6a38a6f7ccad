//! What a store answers instead of doing what it was asked.

use std::fmt;

use http::StatusCode;
use serde::Deserialize;

/// Names the error where an answer has no body, in Azure's.
const CODE_HEADER: &str = "x-ms-error-code";

/// Azure's word for what may not be copied with these credentials though it may be read with them, or is not there.
const COPY_UNVERIFIED: &str = "CannotVerifyCopySource";

/// Names the bucket's region where a request went to another one.
const REGION_HEADER: &str = "x-amz-bucket-region";

/// An answer that is none.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The protocol's word for it, such as `AccessDenied`; empty where there is none.
    pub(super) code: String,
    /// The store's words for it.
    message: String,
    /// The region to go to instead.
    pub(super) region: Option<String>,
}

/// The body of such an answer; a deletion's has one of these for each key.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Body {
    code: String,
    message: String,
    region: Option<String>,
    /// What Google's adds: which permission who does not have.
    details: String,
    /// What Azure's adds.
    authentication_error_detail: String,
}

/// The body of who gives out tokens.
#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenBody {
    error: String,
    error_description: String,
}

/// The answer to a deletion of many.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Deletion {
    #[serde(rename = "Error")]
    errors: Vec<Body>,
}

impl Body {
    fn of(body: &[u8]) -> Body {
        if let Ok(body) = quick_xml::de::from_reader(body) {
            return body;
        }
        let body: TokenBody = serde_json::from_slice(body).unwrap_or_default();
        Body {
            code: body.error,
            message: body.error_description,
            ..Body::default()
        }
    }

    /// What it says in words. Azure's has lines about the request behind that.
    fn words(&self) -> String {
        fn first_line(text: &str) -> &str {
            text.trim().lines().next().unwrap_or_default()
        }
        let message = first_line(&self.message);
        // Other details quote what was signed.
        let is_of_time = self
            .authentication_error_detail
            .starts_with("Signature not valid in the specified time frame");
        let detail = match is_of_time {
            true => first_line(&self.authentication_error_detail),
            false => first_line(&self.details),
        };
        match (message, detail) {
            (message, "") => message.to_owned(),
            ("", detail) => detail.to_owned(),
            (message, detail) => format!("{} {detail}", message.trim_end_matches(':')),
        }
    }
}

impl Refusal {
    /// Reads an answer whose status says that it is one.
    pub(super) fn of(status: StatusCode, headers: &http::HeaderMap, body: &[u8]) -> Refusal {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut body = Body::of(body);
        if body.code.is_empty() {
            body.code = header(CODE_HEADER).unwrap_or_default().to_owned();
        }
        let region = body.region.take();
        let region = region.or_else(|| header(REGION_HEADER).map(str::to_owned));
        Refusal {
            status,
            message: body.words(),
            code: body.code,
            region,
        }
    }

    /// Of a copy that the store does not bring to an end.
    pub(super) fn of_copy() -> Refusal {
        Refusal {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: String::new(),
            message: String::new(),
            region: None,
        }
    }

    /// The refusal inside an answer whose status says that all is well.
    pub(super) fn hidden(status: StatusCode, body: &[u8]) -> Option<Refusal> {
        let found: Body = match root(body)? {
            "Error" => quick_xml::de::from_reader(body).ok()?,
            "DeleteResult" => {
                let deletion: Deletion = quick_xml::de::from_reader(body).ok()?;
                deletion.errors.into_iter().next()?
            }
            _ => return None,
        };
        Some(Refusal {
            status,
            message: found.words(),
            code: found.code,
            region: None,
        })
    }

    /// Whether another try may be answered otherwise.
    pub(super) fn is_momentary(&self) -> bool {
        const MOMENTARY: [&str; 15] = [
            "ServerBusy",
            "OperationTimedOut",
            "PendingCopyOperation",
            "SlowDown",
            "SlowDownRead",
            "SlowDownWrite",
            "InternalError",
            "ServiceUnavailable",
            "RequestTimeout",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "RequestLimitExceeded",
            "OperationAborted",
            "ConditionalRequestConflict",
        ];
        let is_status = matches!(
            self.status.as_u16(),
            408 | 425 | 429 | 500 | 502 | 503 | 504
        );
        is_status || MOMENTARY.contains(&self.code.as_str())
    }

    /// Whether a condition of the request does not hold.
    pub(super) fn is_of_condition(&self) -> bool {
        match self.status {
            // Azure's answers so too where somebody holds the object by a lease.
            StatusCode::PRECONDITION_FAILED => !self.code.starts_with("Lease"),
            StatusCode::CONFLICT => self.code == "BlobAlreadyExists",
            status => status == StatusCode::NOT_MODIFIED,
        }
    }

    /// Whether the object is not there.
    pub(super) fn is_of_absence(&self) -> bool {
        const OF_SOMETHING_ELSE: [&str; 5] = [
            "NoSuchBucket",
            "ContainerNotFound",
            "ContainerDisabled",
            "ResourceNotFound",
            COPY_UNVERIFIED,
        ];
        self.status == StatusCode::NOT_FOUND && !OF_SOMETHING_ELSE.contains(&self.code.as_str())
    }

    /// Whether an upload is not there, which may be since it is finished.
    pub(super) fn is_of_finished_upload(&self) -> bool {
        self.is_of_absence() || self.code == "InvalidBlockList"
    }

    /// Whether the store does not copy the object itself, by its size or as it does not let itself read it.
    pub(super) fn is_of_copied_size(&self) -> bool {
        self.status == StatusCode::PAYLOAD_TOO_LARGE
            || self.code == COPY_UNVERIFIED
            || self.code == "EntityTooLarge"
            || self.code == "InvalidRequest" && self.message.contains("larger than")
    }

    /// Whether the object must stay as it is for some time yet: it is locked, on hold, or its bucket keeps everything so long.
    pub(super) fn is_of_retention(&self) -> bool {
        const WORDS: [&str; 5] = [
            "object lock",
            "worm",
            "retention",
            "legal hold",
            "immutable",
        ];
        let message = self.message.to_ascii_lowercase();
        self.code == "ObjectLocked" || WORDS.iter().any(|word| message.contains(word))
    }

    /// Whether nothing is left of the object where it was to be read.
    pub(super) fn is_of_range(&self) -> bool {
        self.status == StatusCode::RANGE_NOT_SATISFIABLE
    }
}

/// The name of the element that a text in XML consists of.
pub(super) fn root(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let text = text.trim_start_matches(|first: char| first == '\u{feff}' || first.is_whitespace());
    let root = match text.strip_prefix("<?xml") {
        Some(start) => start.split_once("?>")?.1,
        None => text,
    };
    let root = root.trim_start().strip_prefix('<')?;
    let end = root.find(|end: char| end.is_whitespace() || "/>".contains(end))?;
    Some(&root[..end])
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.message.as_str(), self.code.as_str()) {
            ("", "") => write!(f, "it answers {}", self.status),
            ("", code) => write!(f, "it answers {code}"),
            (message, "") => f.write_str(message),
            (message, code) => write!(f, "{} ({code})", message.trim_end_matches('.')),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_is_read_for_what_it_says() {
        let body = b"<?xml version=\"1.0\"?>\n<Error><Code>PermanentRedirect</Code><Message>Use another one.</Message><Region>eu-north-1</Region></Error>";
        let refusal = Refusal::of(StatusCode::MOVED_PERMANENTLY, &http::HeaderMap::new(), body);
        assert_eq!(refusal.to_string(), "Use another one (PermanentRedirect)");
        assert_eq!(refusal.region.as_deref(), Some("eu-north-1"));
        let silent = Refusal::of(StatusCode::FORBIDDEN, &http::HeaderMap::new(), b"<html>");
        assert_eq!(silent.to_string(), "it answers 403 Forbidden");
    }

    #[test]
    fn what_must_stay_is_told_from_what_one_may_not() {
        for (code, message, is_of_retention) in [
            ("AccessDenied", "Access Denied", false),
            (
                "AccessDenied",
                "Access Denied because object protected by object lock.",
                true,
            ),
            (
                "InvalidRequest",
                "Object is WORM protected and cannot be overwritten",
                true,
            ),
            ("ObjectLocked", "", true),
        ] {
            let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
            let refusal = Refusal::of(
                StatusCode::FORBIDDEN,
                &http::HeaderMap::new(),
                body.as_bytes(),
            );
            assert_eq!(
                refusal.is_of_retention(),
                is_of_retention,
                "{code} {message}"
            );
        }
    }

    #[test]
    fn a_refusal_hides_in_an_answer_that_all_is_well() {
        let hidden = |text: &str| Refusal::hidden(StatusCode::OK, text.as_bytes());
        let late =
            hidden("<?xml version=\"1.0\"?>  <Error><Code>InternalError</Code></Error>").unwrap();
        assert!(late.is_momentary());
        let one = hidden("<DeleteResult xmlns=\"x\"><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>").unwrap();
        assert_eq!(one.code, "AccessDenied");
        assert!(hidden("<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>").is_none());
        assert!(hidden("<CopyObjectResult><ETag>x</ETag></CopyObjectResult>").is_none());
    }
}
