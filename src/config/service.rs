//! libpq's connection service file, `~/.pg_service.conf`.
//!
//! Follows interfaces/libpq/fe-connect.c: parseServiceInfo(),
//! parseServiceFile(): the user's file comes before the system's, and the
//! first definition of a service counts.

use super::environment::Environment;
use super::origin::{Origin, Sourced};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The connection parameters of one service, by libpq's keywords.
pub(super) type Service = BTreeMap<String, Sourced<String>>;

/// Finds a service where libpq looks: `$PGSERVICEFILE` or
/// `~/.pg_service.conf`, then `pg_service.conf` in `$PGSYSCONFDIR`.
pub(super) fn find(name: &str, environment: &Environment) -> Result<Service> {
    let own = match environment.variable("PGSERVICEFILE") {
        Some(path) => Some(PathBuf::from(path)),
        None => environment
            .home
            .as_ref()
            .map(|home| home.join(".pg_service.conf")),
    };
    let system = environment
        .variable("PGSYSCONFDIR")
        .map(|folder| Path::new(folder).join("pg_service.conf"));
    let paths: Vec<PathBuf> = own.into_iter().chain(system).collect();
    for path in &paths {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("read service file", path, &error)),
        };
        if let Some(service) = parse(path, &text, name)? {
            return Ok(service);
        }
    }
    let places: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Err(
        Error::usage(format!("there is no definition of service \"{name}\"")).hint(format!(
            "define it in {}, or unset PGSERVICE",
            places.join(" or ")
        )),
    )
}

fn parse(path: &Path, text: &str, name: &str) -> Result<Option<Service>> {
    let mut service: Option<Service> = None;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let wrong = |what: &str| Error::usage(format!("{}:{number}: {what}", path.display()));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            if service.is_some() {
                break;
            }
            if rest.split(']').next() == Some(name) {
                service = Some(Service::new());
            }
            continue;
        }
        let Some(service) = &mut service else {
            continue;
        };
        if line.starts_with("ldap:") {
            return Err(wrong("services from LDAP are not supported")
                .hint("write the service's parameters into the file"));
        }
        let (keyword, value) = line
            .split_once('=')
            .map(|(keyword, value)| (keyword.trim(), value.trim()))
            .ok_or_else(|| {
                wrong("this is no connection parameter").hint("write it as keyword=value")
            })?;
        if keyword == "service" {
            return Err(wrong("a service cannot refer to another one"));
        }
        service.entry(keyword.to_owned()).or_insert(Sourced {
            value: value.to_owned(),
            origin: Origin::ServiceFile {
                path: path.to_owned(),
                line: number,
            },
        });
    }
    Ok(service)
}
