//! The files of Amazon's own tools: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Sections of `key = value` lines; lines that are set off belong to the key above them. Unlike in pgkeep's own files
//! a section may come twice, and no mark has a meaning inside a value.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

/// What the files say of one profile.
#[derive(Default)]
pub(super) struct Profile(BTreeMap<String, Zeroizing<String>>);

impl Profile {
    /// Adds what a file has in these sections, over what is there already; false where it has none of them.
    pub(super) fn add(&mut self, text: &str, sections: &[&str]) -> bool {
        let mut is_there = false;
        let mut is_wanted = false;
        for line in text.lines() {
            let is_set_off = line.starts_with([' ', '\t']);
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            if let Some(rest) = trimmed.strip_prefix('[') {
                let name = rest.split(']').next().unwrap_or_default().trim();
                is_wanted = sections.contains(&name);
                is_there |= is_wanted;
            } else if is_wanted
                && !is_set_off
                && let Some((key, value)) = trimmed.split_once('=')
            {
                let key = key.trim().to_ascii_lowercase();
                let value = Zeroizing::new(value.trim().to_owned());
                self.0.insert(key, value);
            }
        }
        is_there
    }

    /// What it says under a key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(|value| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// What it asks for that takes more than reading it.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        [
            "credential_process",
            "sso_session",
            "sso_start_url",
            "role_arn",
            "login_session",
        ]
        .into_iter()
        .find(|key| self.get(key).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_put_together_from_its_sections() {
        let mut profile = Profile::default();
        let config =
            "[default]\nregion = a\n[profile b]\nregion = eu-north-1\ns3 =\n  region = no\n# c\n";
        assert!(profile.add(config, &["b", "profile b"]));
        let credentials = "[b]\naws_access_key_id=AKIA\naws_secret_access_key = a+b/c=#d\n[default]\naws_access_key_id = x\n[b]\nAWS_SESSION_TOKEN = t\n";
        assert!(profile.add(credentials, &["b"]));
        for (key, value) in [
            ("region", "eu-north-1"),
            ("aws_access_key_id", "AKIA"),
            ("aws_secret_access_key", "a+b/c=#d"),
            ("aws_session_token", "t"),
        ] {
            assert_eq!(profile.get(key), Some(value));
        }
        assert!(!profile.add(credentials, &["c"]));
    }

    #[test]
    fn what_is_not_done_is_named() {
        let mut profile = Profile::default();
        profile.add(
            "[default]\nrole_arn = arn:aws:iam::1:role/r\n",
            &["default"],
        );
        assert_eq!(profile.unsupported(), Some("role_arn"));
    }
}
