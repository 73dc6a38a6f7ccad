//! Which store it is, and how it is spoken to.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

use super::credentials::{self, Sources};

/// What kind of store it is: how its URL begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Amazon S3, and whatever speaks its protocol.
    S3,
    /// Azure's Blob Storage.
    Azure,
    /// Google's Cloud Storage.
    Google,
}

impl Scheme {
    /// All there are.
    pub const ALL: [Scheme; 3] = [Scheme::S3, Scheme::Azure, Scheme::Google];

    /// What stands in front of the bucket.
    pub fn prefix(self) -> &'static str {
        match self {
            Scheme::S3 => "s3://",
            Scheme::Azure => "az://",
            Scheme::Google => "gs://",
        }
    }

    /// What the keys of the configuration begin with that are about such a store.
    pub fn keys(self) -> &'static str {
        match self {
            Scheme::S3 => "s3_",
            Scheme::Azure => "azure_",
            Scheme::Google => "gcs_",
        }
    }

    /// Who runs the store where no endpoint is named.
    pub(super) fn vendor(self) -> &'static str {
        match self {
            Scheme::S3 => "Amazon S3",
            Scheme::Azure => "Azure Storage",
            Scheme::Google => "Google Cloud Storage",
        }
    }

    /// Whether a bucket may have this name.
    fn allows_bucket(self, name: &str) -> bool {
        let (longest, further): (usize, &[u8]) = match self {
            Scheme::S3 => (255, b".-_"),
            Scheme::Google => (222, b".-_"),
            Scheme::Azure => (63, b"-"),
        };
        let is_allowed = |byte: u8| match self {
            Scheme::Azure => byte.is_ascii_lowercase() || byte.is_ascii_digit(),
            _ => byte.is_ascii_alphanumeric(),
        };
        (3..=longest).contains(&name.len())
            && name
                .bytes()
                .all(|byte| is_allowed(byte) || further.contains(&byte))
    }

    /// Whether a part of a folder's name comes back from there as it was.
    fn allows_part(self, part: &str) -> bool {
        match self {
            Scheme::Azure => !part.ends_with('.') && !part.contains('\\'),
            _ => true,
        }
    }
}

/// A bucket, and the folder in it that everything lies below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// What kind of store it is.
    pub scheme: Scheme,
    /// The name of the bucket.
    pub bucket: String,
    /// The folder, without `/` at its ends; empty for the whole bucket.
    pub folder: String,
}

impl Location {
    /// What the text of one may be.
    pub const ALLOWED: &str = "s3://BUCKET or s3://BUCKET/FOLDER, az://CONTAINER/FOLDER of Azure, or gs://BUCKET/FOLDER of Google";

    /// Whether a text is meant as one.
    pub fn is_meant_by(text: &str) -> bool {
        Scheme::ALL
            .iter()
            .any(|scheme| text.starts_with(scheme.prefix()))
    }

    /// Reads one.
    pub fn parse(text: &str) -> Option<Location> {
        let (scheme, rest) = Scheme::ALL
            .into_iter()
            .find_map(|scheme| Some((scheme, text.strip_prefix(scheme.prefix())?)))?;
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let folder = folder.strip_suffix('/').unwrap_or(folder);
        let is_named = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && !part.chars().any(|character| character.is_ascii_control())
                && scheme.allows_part(part)
        };
        let is_folder = folder.is_empty() || folder.split('/').all(is_named);
        (scheme.allows_bucket(bucket) && is_folder).then(|| Location {
            scheme,
            bucket: bucket.to_owned(),
            folder: folder.to_owned(),
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme.prefix(), self.bucket)?;
        match self.folder.as_str() {
            "" => Ok(()),
            folder => write!(f, "/{folder}"),
        }
    }
}

/// The address of a store: `https://HOST:PORT`, or `http://` where nothing is to be encrypted on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    is_plain: bool,
    host: String,
    /// What stands behind the host, with a `/` in front; empty for most stores.
    path: String,
}

impl Endpoint {
    /// What the text of one may be.
    pub const ALLOWED: &str = "https://HOST or https://HOST:PORT, or the same with http:// where nothing is to be encrypted on the way";

    /// Reads one; without a scheme it is `https://`.
    pub fn parse(text: &str) -> Option<Endpoint> {
        let (is_plain, host) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(host), _) => (true, host),
            (_, Some(host)) => (false, host),
            _ => (false, text),
        };
        let host = host.strip_suffix('/').unwrap_or(host);
        let authority: http::uri::Authority = host.parse().ok()?;
        let is_usable = !authority.host().is_empty() && !host.contains('@');
        is_usable.then(|| Endpoint {
            is_plain,
            host: host.to_owned(),
            path: String::new(),
        })
    }

    /// What the text of one of Azure's may be.
    pub const ALLOWED_OF_ACCOUNT: &str = "https://HOST, https://HOST:PORT or https://HOST:PORT/ACCOUNT, or the same with http:// where nothing is to be encrypted on the way";

    /// Reads one of Azure's, where the account may stand behind the host rather than in its name.
    pub fn parse_of_account(text: &str) -> Option<Endpoint> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let start = text.find("://").map_or(0, |at| at + 3);
        let (host, account) = match text[start..].find('/') {
            Some(at) => (&text[..start + at], &text[start + at + 1..]),
            None => (text, ""),
        };
        let is_account = account.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let endpoint = Endpoint::parse(host).filter(|_| is_account)?;
        let path = match account {
            "" => String::new(),
            account => format!("/{account}"),
        };
        Some(Endpoint { path, ..endpoint })
    }

    /// The account of Azure's that it is of, where it says so.
    pub(super) fn account(&self) -> Option<&str> {
        match self.path.strip_prefix('/') {
            Some(account) => Some(account),
            None => self.host.split_once(".blob.").map(|(account, _)| account),
        }
    }

    /// The same for a bucket that is part of the name of the host.
    pub(super) fn of_bucket(&self, bucket: &str) -> Endpoint {
        Endpoint {
            is_plain: self.is_plain,
            host: format!("{bucket}.{}", self.host),
            path: self.path.clone(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_plain { "http" } else { "https" };
        write!(f, "{scheme}://{}{}", self.host, self.path)
    }
}

/// A proxy for HTTP that connections go through: `http://HOST:PORT`, with `USER:PASSWORD@` in front of the host
/// where it asks for that.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy(String);

impl Proxy {
    /// What the text of one may be.
    pub const ALLOWED: &str =
        "http://HOST:PORT, with USER:PASSWORD@ before the host where the proxy asks for it";

    /// Reads one; without a scheme it is `http://`.
    pub fn parse(text: &str) -> Option<Proxy> {
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.strip_suffix('/').unwrap_or(address);
        let authority: http::uri::Authority = address.parse().ok()?;
        (!authority.host().is_empty()).then(|| Proxy(format!("http://{address}")))
    }

    /// With the password, for the one place that sends it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.rsplit_once('@') {
            Some((_, address)) => write!(f, "http://…@{address}"),
            None => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// How the store itself encrypts what it keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServerEncryption {
    /// As the bucket is set up.
    #[default]
    None,
    /// With keys of the store's own.
    Aes256,
    /// With a key that the store's key management keeps.
    Kms,
}

impl ServerEncryption {
    /// What the text of one may be.
    pub const ALLOWED: &str = "none, AES256 or aws:kms";

    /// Reads one.
    pub fn parse(text: &str) -> Option<ServerEncryption> {
        match text.to_ascii_lowercase().as_str() {
            "none" | "off" => Some(ServerEncryption::None),
            "aes256" => Some(ServerEncryption::Aes256),
            "aws:kms" => Some(ServerEncryption::Kms),
            _ => None,
        }
    }
}

impl fmt::Display for ServerEncryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerEncryption::None => "none",
            ServerEncryption::Aes256 => "AES256",
            ServerEncryption::Kms => "aws:kms",
        })
    }
}

/// Everything that is to be known about a store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where in the store everything lies.
    pub location: Location,
    /// Where the store is; none for the vendor's own.
    pub endpoint: Option<Endpoint>,
    /// The account of Azure's that the container belongs to; none leaves it to the credentials.
    pub account: Option<String>,
    /// The region of the bucket; none leaves it to the environment and the profile.
    pub region: Option<String>,
    /// Whether the bucket stands in the path of a request rather than in the name of the host; none leaves it to pgkeep.
    pub path_style: Option<bool>,
    /// Certificates in PEM format of those who vouch for the store, instead of the system's.
    pub authorities: Option<PathBuf>,
    /// What connections go through, instead of what the environment says.
    pub proxy: Option<Proxy>,
    /// How the store encrypts.
    pub encryption: ServerEncryption,
    /// Which key of the key management it encrypts with; none for the bucket's.
    pub encryption_key: Option<String>,
    /// The storage class of new objects; none for the bucket's.
    pub storage_class: Option<String>,
    /// Where the credentials come from.
    pub credentials: Sources,
}

impl Settings {
    /// Those of a store where nothing else is said.
    pub fn new(location: Location, credentials: Sources) -> Settings {
        Settings {
            location,
            endpoint: None,
            account: None,
            region: None,
            path_style: None,
            authorities: None,
            proxy: None,
            encryption: ServerEncryption::None,
            encryption_key: None,
            storage_class: None,
            credentials,
        }
    }

    /// The same with what the environment says of the store where the configuration says nothing.
    pub(super) fn completed(mut self) -> Result<Settings> {
        if self.location.scheme == Scheme::Azure {
            return credentials::azure::complete(self);
        }
        const VARIABLES: [&str; 2] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
        if self.location.scheme == Scheme::S3
            && self.endpoint.is_none()
            && let Some(text) = self.credentials.variable(&VARIABLES)
        {
            let endpoint = Endpoint::parse(text).ok_or_else(|| {
                Error::usage(format!("{} cannot be \"{text}\"", VARIABLES.join(" or ")))
                    .hint(format!("it may be {}", Endpoint::ALLOWED))
            })?;
            self.endpoint = Some(endpoint);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_location_is_a_bucket_and_a_folder() {
        for (text, bucket, folder) in [
            ("s3://backups", "backups", ""),
            ("s3://backups/", "backups", ""),
            ("s3://back.ups/pg/17 main/", "back.ups", "pg/17 main"),
        ] {
            let location = Location::parse(text).unwrap();
            assert_eq!(
                (location.bucket.as_str(), location.folder.as_str()),
                (bucket, folder)
            );
        }
        assert_eq!(
            Location::parse("s3://backups/pg/").unwrap().to_string(),
            "s3://backups/pg"
        );
        for text in [
            "backups",
            "/backups",
            "s3://",
            "s3:///pg",
            "s3://b",
            "s3://back ups",
            "s3://backups//pg",
            "s3://backups/../pg",
            "s3://backups/pg\n",
        ] {
            assert_eq!(Location::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_endpoint_is_encrypted_unless_it_says_otherwise() {
        for (text, shown) in [
            ("minio.example.org:9000", "https://minio.example.org:9000"),
            ("https://s3.example.org/", "https://s3.example.org"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://[::1]:9000", "http://[::1]:9000"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), shown);
        }
        let endpoint = Endpoint::parse("https://s3.example.org").unwrap();
        assert_eq!(
            endpoint.of_bucket("b").to_string(),
            "https://b.s3.example.org"
        );
        for text in ["", "https://", "ftp://a", "https://a/b", "https://u:p@a"] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_password_of_a_proxy_is_not_shown() {
        let proxy = Proxy::parse("http://ann:swordfish@proxy:3128/").unwrap();
        assert_eq!(proxy.to_string(), "http://…@proxy:3128");
        assert!(!format!("{proxy:?}").contains("swordfish"));
        assert_eq!(proxy.reveal(), "http://ann:swordfish@proxy:3128");
        assert_eq!(Proxy::parse("https://proxy"), None);
    }
}
