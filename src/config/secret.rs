//! Passwords, kept out of messages and out of freed memory.

use std::fmt;
use zeroize::Zeroizing;

/// A password: overwritten when dropped, and redacted by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a password over.
    pub fn new(password: String) -> Secret {
        Secret(Zeroizing::new(password))
    }

    /// The password itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_does_not_show_the_password() {
        let shown = format!("{:?}", Secret::new("swordfish".into()));
        assert!(!shown.contains("swordfish"), "{shown}");
    }
}
