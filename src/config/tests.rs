//! The configuration file as a whole: every key, every mistake.

#![allow(clippy::unwrap_used)]

use super::testing::{configuration, environment, storage};
use super::*;
use crate::error::Kind;
use crate::storage::objects::ServerEncryption;
use crate::stored::cipher::Cipher;
use crate::stored::compression::{Algorithm, Compression};
use proptest::prelude::*;
use std::num::NonZero;
use std::time::Duration;

/// What is in force for `primary`, whose section begins with a host.
fn primary(main: &str, server: &str) -> Result<ServerConfiguration> {
    let text = format!("[pgkeep]\n{main}\n[primary]\nhost = h\n{server}\n");
    configuration(&text, &[])?.server("primary")
}

#[test]
fn the_configuration_of_the_tutorial_is_accepted() {
    let text = "[pgmoneta]\nhost = localhost\nmetrics = 5001\n\nbase_dir = /tmp/pgmoneta\n\n\
        compression = zstd\n\nretention = 7\n\nlog_type = console\nlog_level = info\nlog_path =\n\n\
        unix_socket_dir = /tmp/\nverification = 3600\nencryption = aes-256-cbc\n\n\
        [primary]\nhost = localhost\nport = 5432\nuser = repl\nwal_slot = repl\n";
    let configuration = configuration(text, &[]).unwrap();
    let server = configuration.server("primary").unwrap();
    assert_eq!(
        server.storage.base_dir.local().unwrap(),
        Path::new("/tmp/pgmoneta")
    );
    assert_eq!(server.storage.compression, Compression::default());
    assert_eq!(server.retention.to_string(), "7, -, -, -");
    assert_eq!(server.verification, Some(Duration::from_secs(3600)));
    assert_eq!(server.storage.encryption, Cipher::parse("aes-256-cbc"));
    assert_eq!(server.wal_slot.as_deref(), Some("repl"));
    assert_eq!(server.connection.user, "repl");
    assert_eq!(configuration.log_level(), Some(LevelFilter::Info));
    assert_eq!(configuration.log_file(), None);
    let ignored: Vec<&str> = configuration
        .ignored()
        .iter()
        .map(|i| i.key.as_str())
        .collect();
    assert_eq!(ignored, ["host", "metrics", "unix_socket_dir"]);
}

#[test]
fn a_servers_section_overrides_the_main_one() {
    let main = "base_dir = /b\ncompression = gzip\nencryption = aes-128-ctr\nmaster_key = ~/key\n\
        workers = 4\nmax_rate = 8MB\nretention = 7, -, 12, 1\nverification = 1D\n\
        log_level = debug\nlog_file = /l\ncreate_slot = yes";
    let inherited = primary(main, "").unwrap();
    assert_eq!(inherited.storage.base_dir.local().unwrap(), Path::new("/b"));
    assert_eq!(inherited.storage.compression.algorithm, Algorithm::Gzip);
    assert_eq!(inherited.storage.encryption, Cipher::parse("aes-128-ctr"));
    assert_eq!(
        inherited.storage.master_key.as_deref(),
        Some(Path::new("/home/ann/key"))
    );
    assert_eq!(inherited.workers, NonZero::new(4));
    assert_eq!(inherited.max_rate, NonZero::new(8 << 20));
    assert_eq!(inherited.retention.to_string(), "7, -, 12, 1");
    assert_eq!(inherited.verification, Some(Duration::from_secs(86_400)));
    assert_eq!(inherited.log_level, Some(LevelFilter::Debug));
    assert_eq!(inherited.log_file.as_deref(), Some(Path::new("/l")));
    assert!(inherited.create_slot);

    let server = "base_dir = /c\ncompression = none\nencryption = none\nmaster_key = /k\n\
        workers = 0\nmax_rate = 0\nretention = 14, 2\nverification = 0\nlog_level = off\n\
        log_file = /m\ncreate_slot = no\nextra = /a, /b c\nwal_slot = s_1";
    let own = primary(main, server).unwrap();
    assert_eq!(own.storage.base_dir.local().unwrap(), Path::new("/c"));
    assert_eq!(own.storage.compression.algorithm, Algorithm::None);
    assert_eq!(own.storage.encryption, None);
    assert_eq!(own.storage.master_key.as_deref(), Some(Path::new("/k")));
    assert_eq!((own.workers, own.max_rate), (None, None));
    assert_eq!(own.retention.to_string(), "14, 2, 12, 1");
    assert_eq!(own.verification, None);
    assert_eq!(own.log_level, Some(LevelFilter::Off));
    assert_eq!(own.log_file.as_deref(), Some(Path::new("/m")));
    assert!(!own.create_slot);
    assert_eq!(own.extra, ["/a", "/b c"]);
    assert_eq!(own.wal_slot.as_deref(), Some("s_1"));

    // pgmoneta's -1 in a server's section stands for the main section's value.
    let same = primary(main, "workers = -1\nmax_rate = -1").unwrap();
    assert_eq!(same.workers, NonZero::new(4));
    assert_eq!(same.max_rate, NonZero::new(8 << 20));
}

#[test]
fn the_parts_of_retention_must_fit_wherever_they_stand() {
    for (main, own) in [
        ("retention = -, 4", ""),
        ("retention = 7, 5, 12", ""),
        ("retention = 7, 4, 12", "retention = -, 5"),
        ("", "retention = 7, -, 13, 1"),
    ] {
        let error = primary(main, own).unwrap_err();
        assert!(
            error.message().contains(": retention cannot be \""),
            "{error}"
        );
        let hint = error.advice().unwrap();
        assert!(
            hint.contains("at least one day") && hint.contains("up to 4 weeks"),
            "{hint}"
        );
    }
    let own = primary("", "retention = -, 5").unwrap();
    assert_eq!(own.retention.to_string(), "7, 5, -, -");
}

#[test]
fn nothing_is_set_by_default() {
    let server = primary("", "").unwrap();
    assert_eq!(
        server.storage.base_dir.local().unwrap(),
        Path::new("/home/ann/.local/share/pgkeep")
    );
    assert_eq!(server.storage.compression, Compression::default());
    assert_eq!(server.storage.encryption, None);
    assert_eq!(server.retention.to_string(), "7, -, -, -");
    assert_eq!((server.workers, server.max_rate), (None, None));
    assert_eq!((server.wal_slot, server.create_slot), (None, false));
}

#[test]
fn a_level_belongs_to_its_algorithm() {
    let level =
        |main: &str, server: &str| primary(main, server).map(|s| s.storage.compression.level());
    assert_eq!(level("compression_level = 19", "").unwrap(), Some(19));
    assert_eq!(
        level("compression_level = 19", "compression_level = 3").unwrap(),
        Some(3)
    );
    // The main section's 19 is zstd's, and gzip has its own.
    assert_eq!(
        level("compression_level = 19", "compression = gzip").unwrap(),
        Some(6)
    );
    let wrong = [
        (
            "compression = gzip\ncompression_level = 10",
            "",
            "f:3: compression_level cannot be \"10\"",
        ),
        (
            "compression = gzip",
            "compression_level = 10",
            "f:5: compression_level cannot be \"10\"",
        ),
        (
            "",
            "compression = bzip2\ncompression_level = 0",
            "f:6: compression_level cannot be \"0\"",
        ),
    ];
    for (main, server, message) in wrong {
        let text = format!("[pgkeep]\n{main}\n[primary]\nhost = h\n{server}\n");
        let error = configuration(&text, &[]).err().unwrap();
        assert_eq!(error.message(), message);
        assert!(error.advice().unwrap().contains("between 1 and 9"));
    }
}

#[test]
fn every_bad_value_is_named_with_its_line() {
    let common = [
        ("base_dir = relative", "an absolute path"),
        ("compression = zip", "zstd, gzip, lz4, bzip2 or none"),
        ("compression_level = high", "a whole number"),
        ("encryption = rot13", "aes-KEY-MODE"),
        ("master_key = key", "an absolute path"),
        ("workers = many", "a number of threads"),
        ("workers = -2", "a number of threads"),
        ("workers = 1025", "a number of threads"),
        ("max_rate = fast", "a number of bytes"),
        ("backup_max_rate = fast", "a number of bytes"),
        ("network_max_rate = -5", "a number of bytes"),
        ("retention = 7 days", "days, weeks, months and years"),
        ("verification = daily", "a number of seconds"),
        ("create_slot = maybe", "yes or no"),
        ("log_level = loud", "off, error, warn"),
        ("log_file = here", "an absolute path"),
        ("base_dir = s3://", "s3://BUCKET"),
        ("s3_endpoint = ftp://a", "https://HOST"),
        ("s3_region = a b", "a word"),
        ("s3_path_style = perhaps", "on or off"),
        ("s3_ca = ca.pem", "an absolute path"),
        ("s3_credentials = keys", "an absolute path"),
        ("s3_encryption = rot13", "none, AES256 or aws:kms"),
        ("s3_kms_key = a b", "a word"),
        ("s3_storage_class = a b", "a word"),
        ("base_dir = az://Back_ups", "az://CONTAINER"),
        ("base_dir = az://backups/pg.", "az://CONTAINER"),
        ("azure_endpoint = http://a/b/c", "HOST:PORT/ACCOUNT"),
        ("gcs_endpoint = http://a/b", "https://HOST"),
        ("azure_credentials = keys", "an absolute path"),
    ];
    let main = [
        ("storage_engine = s3", "local"),
        ("log_type = paper", "console or file"),
    ];
    let server = [
        ("port = 0", "between 1 and 65535"),
        ("port = 65536", "between 1 and 65535"),
        ("port = 5432,x", "between 1 and 65535"),
        ("wal_slot = Bad-Slot", "lower-case letters"),
        ("extra = /a,,/b", "a list of paths"),
        ("tls_cert_file = crt", "an absolute path"),
        ("tls_key_file = key", "an absolute path"),
        ("tls_ca_file = ca", "an absolute path"),
    ];
    let in_main = common
        .iter()
        .chain(&main)
        .map(|case| ("[pgkeep]\n\n", case));
    let in_server = common
        .iter()
        .chain(&server)
        .map(|case| ("[a]\nhost = h\n", case));
    for (before, (line, allowed)) in in_main.chain(in_server) {
        let error = configuration(&format!("{before}{line}\n"), &[])
            .err()
            .unwrap();
        let (key, value) = line.split_once(" = ").unwrap();
        assert_eq!(error.kind(), Kind::Usage, "{line}");
        assert_eq!(error.message(), format!("f:3: {key} cannot be \"{value}\""));
        let hint = error.advice().unwrap();
        assert!(hint.contains(allowed), "{line}: {hint}");
    }
}

#[test]
fn every_mistake_of_form_is_named_with_its_line() {
    let cases = [
        (
            "[a]\nport = 1",
            "f:1: section [a] has no host",
            "host = NAME",
        ),
        ("[a]\nhost =", "f:1: section [a] has no host", "host = NAME"),
        (
            "[pgkeep]\ncompresion = zstd",
            "f:2: compresion is not a key of this section",
            "did you mean compression?",
        ),
        (
            "[pgkeep]\nbarn = owl",
            "f:2: barn is not a key of this section",
            "base_dir, compression",
        ),
        (
            "[pgkeep]\nuser = ann",
            "f:2: user belongs into the section of a server",
            "",
        ),
        (
            "[a]\nhost = h\nusr = ann",
            "f:3: usr is not a key of this section",
            "did you mean user?",
        ),
        (
            "[a]\nhost = h\nmetrics = 1",
            "f:3: metrics is not a key of this section",
            "",
        ),
        (
            "[pgkeep]\n[pgmoneta]",
            "f:2: [pgkeep] and [pgmoneta] are both here",
            "one of them",
        ),
        (
            "[a]\nhost = h\n[a]\nhost = i",
            "f:3: section [a] is here a second time",
            "",
        ),
        (
            "[a]\nhost = h\nhost = i",
            "f:3: host is set a second time in [a]",
            "",
        ),
        (
            "[pgkeep]\nmax_rate = 1\nbackup_max_rate = 2",
            "f:3: backup_max_rate sets max_rate a second time",
            "",
        ),
        (
            "[pgkeep]\nlog_type=file\nlog_file = /a\nlog_path = /b",
            "f:4: log_path sets log_file a second time",
            "",
        ),
        (
            "[../a]\nhost = h",
            "f:1: \"../a\" cannot be the name of a server",
            "letters",
        ),
    ];
    for (text, message, advice) in cases {
        let error = configuration(text, &[]).err().unwrap();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        assert_eq!(error.message(), message);
        let hint = error.advice().unwrap_or_default();
        assert!(hint.contains(advice), "{text}: {hint}");
    }
}

#[test]
fn synonyms_of_pgmoneta_mean_the_same() {
    for rate in ["backup_max_rate", "network_max_rate"] {
        let server = primary(&format!("{rate} = 1000"), "").unwrap();
        assert_eq!(server.max_rate, NonZero::new(1000), "{rate}");
    }
    let text = "[pgmoneta]\nlog_type = file\nlog_path = /l\nlog_level = DEBUG5";
    let logged = configuration(text, &[]).unwrap();
    assert_eq!(logged.log_file(), Some(Path::new("/l")));
    assert_eq!(logged.log_level(), Some(LevelFilter::Trace));
    for (text, value) in [
        ("on", true),
        ("1", true),
        ("TRUE", true),
        ("off", false),
        ("0", false),
    ] {
        let server = primary("", &format!("create_slot = {text}")).unwrap();
        assert_eq!(server.create_slot, value, "{text}");
    }
}

#[test]
fn keys_without_effect_are_told_by_what_is_lost() {
    let text = "[pgkeep]\nlibev = epoll\nlog_type = syslog\nstorage_engine = local\n\
        tls_ca_file = x\n[a]\nhost = h\nfollow = b\nonline = yes\n";
    let configuration = configuration(text, &[]).unwrap();
    let ignored: Vec<_> = configuration
        .ignored()
        .iter()
        .map(|ignored| (ignored.key.as_str(), ignored.line, ignored.reason))
        .collect();
    let expected = [
        ("libev", 2, Reason::Daemon),
        ("log_type", 3, Reason::NotDone),
        ("tls_ca_file", 5, Reason::Daemon),
        ("follow", 8, Reason::NotDone),
        ("online", 9, Reason::Daemon),
    ];
    assert_eq!(ignored, expected);
}

#[test]
fn an_unknown_server_is_told_the_known_ones() {
    let text = "[primary]\nhost = h\n[replica]\nhost = h\n";
    let configuration = configuration(text, &[]).unwrap();
    let error = configuration.server("primray").err().unwrap();
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(error.message(), "server primray is not in f");
    let hint = error.advice().unwrap();
    assert_eq!(
        hint,
        "did you mean primary? the servers there are primary, replica"
    );
    let names: Vec<&str> = configuration.servers().map(ServerName::as_str).collect();
    assert_eq!(names, ["primary", "replica"]);
}

#[test]
fn names_of_servers_are_safe_as_folders() {
    let longest = "a".repeat(63);
    for name in ["a", "db-1.example_com", "9", &longest] {
        assert_eq!(ServerName::new(name).unwrap().as_str(), name);
    }
    let too_long = "a".repeat(64);
    for name in [
        "", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "a\0", &too_long,
    ] {
        assert_eq!(
            ServerName::new(name).err().unwrap().kind(),
            Kind::Usage,
            "{name:?}"
        );
    }
}

#[test]
fn the_file_is_looked_for_in_four_places() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let write = |path: &Path, base_dir: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("[pgkeep]\nbase_dir = {base_dir}\n")).unwrap();
    };
    let mut environment = environment(&[]);
    environment.home = Some(at("home"));
    environment.system_directory = at("etc");
    let base_dir = |explicit: Option<&Path>, environment: &Environment| {
        let configuration = Configuration::load(explicit, environment).unwrap();
        let storage = configuration.server("any").unwrap().storage;
        storage.base_dir.local().unwrap().to_owned()
    };

    assert_eq!(base_dir(None, &environment), at("home/.local/share/pgkeep"));
    assert!(
        Configuration::load(None, &environment)
            .unwrap()
            .path()
            .is_none()
    );
    write(&at("etc/pgkeep/pgkeep.conf"), "/of/system");
    assert_eq!(base_dir(None, &environment), Path::new("/of/system"));
    write(&at("home/.config/pgkeep/pgkeep.conf"), "/of/user");
    assert_eq!(base_dir(None, &environment), Path::new("/of/user"));
    write(&at("variable.conf"), "/of/variable");
    let named = at("variable.conf").display().to_string();
    environment.variables.insert("PGKEEP_CONFIG".into(), named);
    assert_eq!(base_dir(None, &environment), Path::new("/of/variable"));
    write(&at("explicit.conf"), "/of/option");
    assert_eq!(
        base_dir(Some(&at("explicit.conf")), &environment),
        Path::new("/of/option")
    );

    let missing = Configuration::load(Some(&at("none.conf")), &environment)
        .err()
        .unwrap();
    assert!(missing.message().ends_with("none.conf is not there"));
    fs::write(at("binary.conf"), b"[\xff]").unwrap();
    let binary = Configuration::load(Some(&at("binary.conf")), &environment)
        .err()
        .unwrap();
    assert!(binary.message().ends_with("is no text in UTF-8"));
    let unreadable = Configuration::load(Some(folder.path()), &environment)
        .err()
        .unwrap();
    assert_eq!(unreadable.kind(), Kind::Usage);
}

#[test]
fn a_store_is_spoken_to_as_its_sections_say() {
    let main = "base_dir = s3://backups/pg 17/\ns3_endpoint = minio:9000\ns3_region = eu\n\
                s3_encryption = aws:kms\ns3_kms_key = alias/k\ns3_proxy = ann:swordfish@proxy:3128\n";
    let settings = |server: &str| match primary(main, server).unwrap().storage.base_dir {
        Base::Objects(settings) => Some(*settings),
        Base::Folder(_) => None,
    };
    let inherited = settings("").unwrap();
    assert_eq!(inherited.location.to_string(), "s3://backups/pg 17");
    assert_eq!(
        inherited.endpoint.as_ref().unwrap().to_string(),
        "https://minio:9000"
    );
    assert_eq!(inherited.region.as_deref(), Some("eu"));
    assert_eq!(inherited.encryption, ServerEncryption::Kms);
    assert_eq!(inherited.path_style, None);
    assert!(!format!("{inherited:?}").contains("swordfish"));
    let own = settings("s3_region = us\ns3_path_style = off\ns3_encryption = none\n").unwrap();
    assert_eq!(own.region.as_deref(), Some("us"));
    assert_eq!(own.path_style, Some(false));
    assert_eq!(own.encryption_key, None);

    let text = format!("[pgkeep]\n{main}[primary]\nhost = h\nbase_dir = /b\n");
    let configuration = configuration(&text, &[]).unwrap();
    let folder = configuration.server("primary").unwrap().storage.base_dir;
    assert_eq!(folder.local().unwrap(), Path::new("/b"));
    let shown = |key: &str| {
        let entries = configuration.entries().unwrap();
        entries
            .into_iter()
            .find(|entry| entry.key == key)
            .unwrap()
            .value
    };
    assert_eq!(shown("base_dir"), "s3://backups/pg 17");
    assert_eq!(shown("primary.s3_proxy"), "http://…@proxy:3128");
    assert_eq!(shown("primary.s3_kms_key"), "alias/k");
}

#[test]
fn each_kind_of_store_has_its_own_keys() {
    let main = "base_dir = az://backups/pg\nazure_account = company\nazure_endpoint = http://127.0.0.1:10000/company\n\
                azure_proxy = proxy:3128\ns3_region = eu\nrepo2_base_dir = gs://far/keep\n\
                repo2_gcs_credentials = /etc/gcs.json\nrepo2_azure_account = other\n";
    let text = format!("[pgkeep]\n{main}[a]\nhost = h\n[b]\nhost = h\ngcs_ca = /ca.pem\n");
    let both = configuration(&text, &[]).unwrap();
    let settings = |repository| {
        let storage = both.storage("a").unwrap().at(repository).unwrap();
        match storage.base_dir {
            Base::Objects(settings) => *settings,
            Base::Folder(_) => unreachable!("a folder"),
        }
    };
    let azure = settings(RepositoryName::MAIN);
    assert_eq!(azure.location.to_string(), "az://backups/pg");
    assert_eq!(azure.account.as_deref(), Some("company"));
    let endpoint = azure.endpoint.unwrap().to_string();
    assert_eq!(endpoint, "http://127.0.0.1:10000/company");
    assert!(azure.proxy.is_some());
    let google = settings(RepositoryName::ALL[1]);
    assert_eq!(google.location.to_string(), "gs://far/keep");
    assert_eq!((google.endpoint, google.proxy), (None, None));
    let told = |configuration: &Configuration| -> Vec<String> {
        let told = configuration.of_other_stores.iter();
        told.map(|entry| format!("{} {}", entry.origin, entry.key))
            .collect()
    };
    assert_eq!(
        told(&both),
        ["f:6 s3_region", "f:9 repo2_azure_account", "f:14 gcs_ca"]
    );
    // What one of the servers needs is none of those.
    let one = format!("{text}[c]\nhost = h\nbase_dir = s3://elsewhere/pg\n");
    let told = told(&configuration(&one, &[]).unwrap());
    assert_eq!(told, ["f:9 repo2_azure_account", "f:14 gcs_ca"]);
}

#[test]
fn what_is_wrong_with_a_store_is_named_without_its_secrets() {
    let error = primary("", "s3_proxy = https://ann:swordfish@proxy").unwrap_err();
    assert!(!error.message().contains("swordfish"), "{error}");
    assert!(error.advice().unwrap().contains("http://HOST:PORT"));
    let error = primary("s3_kms_key = k", "").unwrap_err();
    assert_eq!(error.message(), "f:2: s3_kms_key has no effect here");
}

#[test]
fn further_places_have_keys_of_their_own() {
    let text = "[pgkeep]\nbase_dir = /b\nretention = 7\ns3_region = eu\nrepo2_base_dir = s3://far/keep\nrepo2_s3_region = us\n\
                repo2_retention = 30, 4\n[primary]\nhost = h\nrepo3_base_dir = /c\nrepo2_retention = -, 3\n[other]\nhost = h\n";
    let configuration = configuration(text, &[]).unwrap();
    let at = |server: &str, name: &str| {
        let server = configuration.server(server).unwrap();
        server.at(name.parse().unwrap())
    };
    let main = at("primary", "repo1").unwrap();
    assert_eq!(main.storage.base_dir.local().unwrap(), Path::new("/b"));
    assert_eq!(main.retention.to_string(), "7, -, -, -");
    let second = at("primary", "repo2").unwrap();
    assert_eq!(second.retention.to_string(), "30, 3, -, -");
    assert_eq!(second.storage.repository.to_string(), "repo2");
    let settings = match second.storage.base_dir {
        Base::Objects(settings) => Some(settings),
        Base::Folder(_) => None,
    };
    let settings = settings.unwrap();
    assert_eq!(settings.location.to_string(), "s3://far/keep");
    assert_eq!(settings.region.as_deref(), Some("us"));
    let third = at("primary", "repo3").unwrap();
    assert_eq!(third.storage.base_dir.local().unwrap(), Path::new("/c"));
    assert_eq!(third.retention.to_string(), "7, -, -, -");
    let error = at("other", "repo3").unwrap_err();
    assert_eq!(error.message(), "server other has no repository repo3");
    assert_eq!(error.advice().unwrap(), "there are repo1, repo2");

    let shown = |key: &str| {
        let entries = configuration.entries().unwrap().into_iter();
        let mut values = entries.filter(|entry| entry.key == key);
        values.next().unwrap().value
    };
    assert_eq!(shown("repo2_base_dir"), "s3://far/keep");
    assert_eq!(shown("primary.repo2_s3_region"), "us");
    assert_eq!(shown("primary.repo2_retention"), "30, 3, -, -");
    assert_eq!(shown("primary.repo3_base_dir"), "/c");
}

#[test]
fn what_is_wrong_with_a_further_place_is_named_with_its_line() {
    for (line, what) in [
        (
            "repo1_base_dir = /b",
            "repo1_base_dir is of no place that can be",
        ),
        (
            "repo10_base_dir = /b",
            "repo10_base_dir is of no place that can be",
        ),
        ("repo2_base_dir = b", "repo2_base_dir cannot be \"b\""),
        (
            "repo2_s3_path_style = no!",
            "repo2_s3_path_style cannot be \"no!\"",
        ),
        ("repo2_retention = x y", "repo2_retention cannot be \"x y\""),
        (
            "repo2_compression = lz4",
            "repo2_compression is not a key of this section",
        ),
        ("repo2_s3_region = eu", "repo2_s3_region has no effect here"),
    ] {
        for before in ["[pgkeep]\n\n", "[a]\nhost = h\n"] {
            let error = configuration(&format!("{before}{line}\n"), &[]);
            let error = error.err().unwrap();
            assert_eq!(error.kind(), Kind::Usage, "{line}");
            assert_eq!(error.message(), format!("f:3: {what}"));
        }
    }
    let key = "repo2_base_dir = s3://far/keep\nrepo2_s3_kms_key = k";
    let error = configuration(&format!("[pgkeep]\n{key}\n"), &[]);
    let error = error.err().unwrap();
    assert_eq!(error.message(), "f:3: repo2_s3_kms_key has no effect here");
    // Who archives elsewhere does not stand still for it.
    let text = "[pgkeep]\nbase_dir = /b\nrepo2_base_dir = c\n[primary]\nhost = h\n";
    let found = storage(text, &[], "primary").unwrap();
    assert_eq!(found.base_dir.local().unwrap(), Path::new("/b"));
    assert!(found.at("repo2".parse().unwrap()).is_err());
}

#[test]
fn every_setting_tells_where_it_came_from() {
    let text = "[pgkeep]\nbase_dir = /b\n[primary]\nhost = h\ncompression = lz4\n";
    let variables = [
        ("PGPORT", "6000"),
        ("PGPASSWORD", "swordfish"),
        ("PGUSER", "bob"),
    ];
    let entries = configuration(text, &variables).unwrap().entries().unwrap();
    let shown = |key: &str| {
        let found: Vec<_> = entries.iter().filter(|entry| entry.key == key).collect();
        let [entry] = found.as_slice() else {
            return format!("{} entries", found.len());
        };
        format!("{} from {}", entry.value, entry.origin)
    };
    let expected = [
        ("base_dir", "/b from f:2"),
        ("compression", "zstd from default"),
        ("primary.base_dir", "/b from f:2"),
        ("primary.compression", "lz4 from f:5"),
        ("primary.host", "h from f:4"),
        ("primary.port", "6000 from $PGPORT"),
        ("primary.user", "bob from $PGUSER"),
        ("primary.database", "postgres from default"),
        ("primary.password", "(hidden) from $PGPASSWORD"),
        ("primary.retention", "7, -, -, - from default"),
    ];
    for (key, value) in expected {
        assert_eq!(shown(key), value, "{key}");
    }
    assert!(!format!("{entries:?}").contains("swordfish"));
}

proptest! {
    #[test]
    fn any_configuration_is_read_or_refused(
        lines in prop::collection::vec(
            prop_oneof![
                "\\[(pgkeep|a|b)\\]",
                "(host|port|user|extra|workers|max_rate|retention|verification|log_path) = [-,0-9A-Za-z/]*",
                "(compression|compression_level|encryption|base_dir|wal_slot) = [-0-9a-z/]*",
                "\\PC*",
            ],
            0..12,
        )
    ) {
        if let Ok(configuration) = configuration(&lines.join("\n"), &[]) {
            for name in configuration.servers() {
                let _ = configuration.server(name.as_str());
            }
            let _ = configuration.entries();
        }
    }
}

/// pgkeep.conf(5), as it is written.
fn manual() -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/cli/manual/pgkeep.conf.roff"
    );
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_manual_has_every_key_and_no_other() {
    let manual = manual();
    let lines = manual.lines().collect::<Vec<_>>();
    let tags = lines.windows(2).filter(|lines| lines[0] == ".TP");
    let mut described: Vec<&str> = tags
        .flat_map(|lines| lines[1].split([' ', '"', ',']).skip(1))
        .filter(|word| !word.is_empty())
        .collect();
    let mut known = [
        &super::settings::common_keys(),
        super::settings::SERVER_KEYS,
    ]
    .concat();
    described.sort_unstable();
    known.sort_unstable();
    assert_eq!(described, known);
}

#[test]
fn the_manual_has_every_variable_of_libpq_and_no_other() {
    let manual = manual();
    let (_, list) = manual.split_once("These variables are known:").unwrap();
    let (list, _) = list.split_once(".RE").unwrap();
    let variables = list
        .split([',', '.', '\n', ' '])
        .filter(|word| word.starts_with("PG"));
    let described: Vec<&str> = variables.collect();
    let parameters = super::libpq::PARAMETERS
        .iter()
        .map(|(_, variable)| *variable);
    let others = ["PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR"];
    let mut known: Vec<&str> = parameters.chain(others).collect();
    known.sort_unstable();
    assert_eq!(described, known);
}

#[test]
fn the_sample_has_every_key_with_a_value_it_may_have() {
    let sample = include_str!("pgkeep.conf.sample");
    configuration(sample, &[]).unwrap();
    let setting = |line: &&str| line.starts_with('#') && line.contains(" = ");
    let lines = sample.lines().map(|line| match Some(line).filter(setting) {
        Some(setting) => &setting[1..],
        None => line,
    });
    let complete: Vec<&str> = lines.collect();
    configuration(&complete.join("\n"), &[]).unwrap();
    for key in [
        &super::settings::common_keys(),
        super::settings::SERVER_KEYS,
    ]
    .concat()
    {
        let beginning = format!("{key} = ");
        assert!(
            complete.iter().any(|line| line.starts_with(&beginning)),
            "{key}"
        );
    }
}

#[test]
fn a_server_that_waits_is_not_stopped_by_what_it_does_not_need() {
    let wrong = "[pgkeep]\nbase_dir = /b\nretention = never\nlog_level = loud\nmax_rate = -5\n\
                 [other]\nhoost = x\nencryption = rot13\n[primary]\nport = many\nencryption = aes-256-gcm\n";
    assert!(configuration(wrong, &[]).is_err());
    // Nor by what says how to connect.
    let found = storage(wrong, &[("PGSERVICE", "none")], "primary").unwrap();
    assert_eq!(found.base_dir.local().unwrap(), Path::new("/b"));
    assert_eq!(found.encryption, Cipher::parse("aes-256-gcm"));

    // Where it would store somewhere else, or as something else, it is.
    for (text, why) in [
        ("[pgkeep]\nbase_dirr = /b\n", "base_dirr is not a key"),
        ("[pgkeep]\nbase_dir = b\n", "base_dir cannot be"),
        ("[primary]\nencryption = rot13\n", "encryption cannot be"),
        (
            "[primary]\ncompression = lz4\ncompression_level = 99\n",
            "compression_level cannot be",
        ),
        ("[primry]\nhost = x\n", "server primary is not in"),
    ] {
        let error = storage(text, &[], "primary").unwrap_err();
        assert!(error.message().contains(why), "{error}");
    }
}
