//! libpq's connection parameters and where they come from.
//!
//! A parameter is looked for in the server's section, in the service file, in
//! its environment variable and in libpq's default, in this order. Follows
//! interfaces/libpq/fe-connect.c: PQconninfoOptions, conninfo_add_defaults().

use super::environment::Environment;
use super::origin::{Origin, Sourced};
use super::service::{self, Service};
use super::settings;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// libpq's keywords with their environment variables.
pub(super) const PARAMETERS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("options", "PGOPTIONS"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("require_auth", "PGREQUIREAUTH"),
    ("requirepeer", "PGREQUIREPEER"),
    ("gssencmode", "PGGSSENCMODE"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
];

/// Keywords that a service may have and that change nothing here: names for
/// logs, tuning that pgkeep does itself, and Kerberos, which it does not speak.
const WITHOUT_EFFECT: &[&str] = &[
    "application_name",
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
];

/// All sources of parameters for one server.
pub(super) struct Sources<'a> {
    section: BTreeMap<&'static str, Sourced<String>>,
    service: Service,
    environment: &'a Environment,
}

impl<'a> Sources<'a> {
    /// Collects the sources: `section` is the server's, if there is a file.
    pub(super) fn new(
        section: Option<&settings::Server>,
        environment: &'a Environment,
    ) -> Result<Sources<'a>> {
        let service = match environment.variable("PGSERVICE") {
            Some(name) => service::find(name, environment)?,
            None => Service::new(),
        };
        for (keyword, value) in &service {
            let known = PARAMETERS.iter().any(|(known, _)| known == keyword)
                || WITHOUT_EFFECT.contains(&keyword.as_str());
            if !known {
                return Err(Error::usage(format!(
                    "{}: {keyword} is no connection parameter that pgkeep supports",
                    value.origin
                ))
                .hint("remove it, or set up a service of its own for pgkeep"));
            }
        }
        Ok(Sources {
            section: section.map(parameters_of).unwrap_or_default(),
            service,
            environment,
        })
    }

    /// The value of a parameter; an empty one counts as not given.
    pub(super) fn get(&self, keyword: &str) -> Option<Sourced<String>> {
        let given = self
            .section
            .get(keyword)
            .or_else(|| self.service.get(keyword))
            .filter(|given| !given.value.is_empty());
        if let Some(given) = given {
            return Some(given.clone());
        }
        let (_, variable) = PARAMETERS.iter().find(|(known, _)| *known == keyword)?;
        let value = self.environment.variable(variable)?;
        Some(Sourced {
            value: value.to_owned(),
            origin: Origin::Environment(variable),
        })
    }

    /// The section names a host, so that no other source's address fits it.
    pub(super) fn section_has_host(&self) -> bool {
        self.section.contains_key("host")
    }

    /// A parameter that has one of a few values.
    pub(super) fn choice<T: Copy>(
        &self,
        keyword: &str,
        choices: &[(&'static str, T)],
    ) -> Result<Option<T>> {
        self.get(keyword)
            .map(|given| {
                choices
                    .iter()
                    .find(|(name, _)| *name == given.value)
                    .map(|(_, choice)| *choice)
                    .ok_or_else(|| {
                        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                        bad_value(keyword, &given, &names.join(", "))
                    })
            })
            .transpose()
    }
}

/// A parameter's value is none that it may have.
pub(super) fn bad_value(keyword: &str, given: &Sourced<String>, allowed: &str) -> Error {
    Error::usage(format!(
        "{}: {keyword} cannot be \"{}\"",
        given.origin, given.value
    ))
    .hint(format!("{keyword} may be {allowed}"))
}

/// The settings of a section by libpq's keywords.
fn parameters_of(section: &settings::Server) -> BTreeMap<&'static str, Sourced<String>> {
    let path = |given: &Option<Sourced<std::path::PathBuf>>| {
        given.as_ref().map(|given| Sourced {
            value: given.value.to_string_lossy().into_owned(),
            origin: given.origin.clone(),
        })
    };
    [
        ("host", section.host.clone()),
        ("port", section.port.clone()),
        ("user", section.user.clone()),
        ("dbname", section.database.clone()),
        ("sslcert", path(&section.certificate)),
        ("sslkey", path(&section.key)),
        ("sslrootcert", path(&section.roots)),
    ]
    .into_iter()
    .filter_map(|(keyword, given)| Some((keyword, given?)))
    .collect()
}
