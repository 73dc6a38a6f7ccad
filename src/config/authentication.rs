//! What libpq can be told to demand of the server, and pgkeep cannot.

use super::connection::ChannelBinding;
use super::libpq::Sources;
use super::origin::Sourced;
use crate::error::{Error, Result};

/// Refuses what pgkeep cannot honour and libpq's users rely on.
pub(super) fn refuse_unsupported(
    sources: &Sources<'_>,
    channel_binding: ChannelBinding,
) -> Result<()> {
    let refuse = |keyword: &str, given: &Sourced<String>, hint: &str| {
        Err(Error::usage(format!(
            "{}: {keyword} = {} is not supported",
            given.origin, given.value
        ))
        .hint(hint))
    };
    if let Some(given) = sources.get("requirepeer") {
        return refuse(
            "requirepeer",
            &given,
            "unset it, or connect over TLS with sslmode verify-full",
        );
    }
    let gssencmode = sources.get("gssencmode");
    if let Some(given) = gssencmode.filter(|given| given.value == "require") {
        return refuse(
            "gssencmode",
            &given,
            "use TLS instead, for instance sslmode verify-full",
        );
    }
    let require_auth = sources.get("require_auth");
    if let Some(given) = require_auth.filter(|given| !satisfies(&given.value, channel_binding)) {
        return refuse(
            "require_auth",
            &given,
            "only scram-sha-256 can be required, and only with channel_binding=require",
        );
    }
    Ok(())
}

/// Every method that could come to be used is one that `require_auth` allows.
/// With channel binding required, the only one is SCRAM.
fn satisfies(required: &str, channel_binding: ChannelBinding) -> bool {
    let possible: &[&str] = match channel_binding {
        ChannelBinding::Require => &["scram-sha-256"],
        _ => &["scram-sha-256", "md5", "password", "none"],
    };
    let methods: Vec<&str> = required.split(',').map(str::trim).collect();
    let (refused, allowed): (Vec<&str>, Vec<&str>) = methods
        .into_iter()
        .partition(|method| method.starts_with('!'));
    possible.iter().all(|method| {
        (allowed.is_empty() || allowed.contains(method))
            && !refused
                .iter()
                .any(|refused| refused.strip_prefix('!') == Some(method))
    })
}
