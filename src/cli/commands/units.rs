use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::app::{App, Server};
use crate::cli::report::{Answer, Fields, Value, field};
use crate::cli::systemd::{self, MARK, Setting, Unit};
use crate::config::{Environment, Host, Origin};
use crate::error::{Error, Result};

/// Print systemd units that back a server up by themselves
///
/// A service and a timer each for a full backup a week, an incremental one on the other days, copying the
/// WAL, verifying what is due, and applying the retention. They run as the owner of the repository,
/// who must be able to read the configuration, and may do little else.
#[derive(Debug, Args)]
pub(crate) struct Units {
    /// The server's name
    server: String,
    /// Write the units into this folder instead
    directory: Option<PathBuf>,
}

impl Units {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = Vec::new();
        if let Some(directory) = &self.directory {
            request.push(field("Directory", directory.display().to_string()));
        }
        request.push(field("Server", self.server.as_str()));
        request
    }

    /// Makes them.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = app.server(&self.server)?;
        let units = systemd::units(&setting(app, &server)?);
        let Some(directory) = &self.directory else {
            let shown = units
                .iter()
                .map(|unit| format!("# {}\n{}", unit.name, unit.text));
            let contents: Fields = units
                .iter()
                .map(|unit| field(&unit.name, unit.text.as_str()))
                .collect();
            return Ok(Answer {
                plain: Some(shown.collect::<Vec<_>>().join("\n")),
                ..Answer::success(vec![field("Units", contents)])
            });
        };
        let mut written: Vec<Value> = Vec::new();
        for unit in &units {
            let path = directory.join(&unit.name);
            write(&path, unit)?;
            written.push(path.display().to_string().into());
        }
        let timers = units.iter().filter(|unit| unit.name.ends_with(".timer"));
        let timers: Vec<&str> = timers.map(|unit| unit.name.as_str()).collect();
        Ok(Answer::success(vec![
            field("Server", server.name()),
            field("Units", written),
            field(
                "Next",
                format!(
                    "systemctl daemon-reload && systemctl enable --now {}",
                    timers.join(" ")
                ),
            ),
        ]))
    }
}

/// Files of somebody else are not replaced.
fn write(path: &Path, unit: &Unit) -> Result<()> {
    match fs::read_to_string(path) {
        Ok(text) if !text.starts_with(MARK) => {
            return Err(
                Error::failed(format!("{} was not made by pgkeep", path.display()))
                    .hint("move it away, or write into another folder"),
            );
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("read", path, &error));
        }
        _ => {}
    }
    fs::write(path, &unit.text).map_err(|error| Error::io("write", path, &error))
}

fn setting(app: &App, server: &Server) -> Result<Setting> {
    let configuration = app.configuration.path().ok_or_else(|| {
        Error::usage("units need a configuration file, as systemd passes no environment on")
            .hint("write /etc/pgkeep/pgkeep.conf, see man pgkeep.conf")
    })?;
    let configuration = absolute(configuration)?;
    for entry in app.configuration.entries()? {
        let of_server = entry.key.starts_with(&format!("{}.", server.name()));
        if let (true, Origin::Environment(variable)) = (of_server, &entry.origin) {
            log::warn!(
                "{} comes from ${variable}, which systemd does not pass on: put it into {}",
                entry.key,
                configuration.display()
            );
        }
    }
    let program = std::env::current_exe()
        .map_err(|error| Error::failed(format!("cannot tell where pgkeep itself is: {error}")))?;
    let settings = &server.configuration;
    let base_dir = settings.storage.base_dir.local();
    let log_file = settings
        .log_file
        .as_deref()
        .or(app.configuration.log_file());
    let written = log_file.and_then(Path::parent).map(Path::to_owned);
    let mut sockets = settings
        .connection
        .endpoints
        .iter()
        .map(|endpoint| &endpoint.host);
    let in_tmp = |path: &Path| path.starts_with("/tmp") || path.starts_with("/var/tmp");
    let needs_tmp = sockets.any(|host| matches!(host, Host::Socket(folder) if in_tmp(folder)))
        || [&*configuration, &*program]
            .into_iter()
            .chain(base_dir)
            .any(in_tmp);
    let verifies = settings.verification.is_some();
    if !verifies {
        log::warn!(
            "verification is not configured for server {}: there is no unit that verifies",
            server.name()
        );
    }
    Ok(Setting {
        server: server.name().to_owned(),
        program,
        user: owner(base_dir.unwrap_or(&configuration))?,
        configuration,
        base_dir: base_dir.map(Path::to_owned),
        written: written.into_iter().collect(),
        needs_tmp,
        verifies,
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::usage(format!("{} is no path: {error}", path.display())))
}

/// The name, or else the number, of the user whom the repository belongs to, or the configuration where that lies afar.
fn owner(base_dir: &Path) -> Result<String> {
    let user_id = match fs::metadata(base_dir) {
        Ok(metadata) => metadata.uid(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            log::warn!("create {} before the units run", base_dir.display());
            rustix::process::geteuid().as_raw()
        }
        Err(error) => return Err(Error::io("look at", base_dir, &error)),
    };
    Ok(Environment::user_name_of(user_id).unwrap_or_else(|| user_id.to_string()))
}
