//! What a store answers instead of doing what it was asked.

use std::fmt;

use http::StatusCode;
use serde::Deserialize;

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
}

/// The answer to a deletion of many.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Deletion {
    #[serde(rename = "Error")]
    errors: Vec<Body>,
}

impl Refusal {
    /// Reads an answer whose status says that it is one.
    pub(super) fn of(status: StatusCode, headers: &http::HeaderMap, body: &[u8]) -> Refusal {
        let body: Body = quick_xml::de::from_reader(body).unwrap_or_default();
        let header = headers
            .get(REGION_HEADER)
            .and_then(|region| region.to_str().ok());
        Refusal {
            status,
            code: body.code,
            message: body.message,
            region: body.region.or_else(|| header.map(str::to_owned)),
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
            code: found.code,
            message: found.message,
            region: None,
        })
    }

    /// Whether another try may be answered otherwise.
    pub(super) fn is_momentary(&self) -> bool {
        const MOMENTARY: [&str; 12] = [
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
        self.status == StatusCode::PRECONDITION_FAILED || self.status == StatusCode::NOT_MODIFIED
    }

    /// Whether the object is not there.
    pub(super) fn is_of_absence(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && self.code != "NoSuchBucket"
    }

    /// Whether the object is larger than what the store copies at once.
    pub(super) fn is_of_copied_size(&self) -> bool {
        self.code == "EntityTooLarge"
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
