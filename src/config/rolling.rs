//! Secrets that change while the service runs.
//!
//! Files are looked at by their path and compared by what stands in them: Kubernetes changes a mounted
//! secret by turning a symbolic link over, which neither the time nor the number of the file behind it
//! has to show. A new text is judged by reading all settings again with it in the place of the old one
//! and nothing else changed, so the rules are those of the start; and each file by itself, so that a
//! bad one keeps no good one out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::environment::Environment;
use super::files::{Counts, Files, NamedFile, read_again};
use super::{ConfigError, Settings};
use crate::cli::ServeArgs;

/// The files that settings name, and what of them is in force.
pub struct SecretFiles {
    args: ServeArgs,
    environment: Environment,
    /// What is in force.
    files: Files,
    /// What was judged last.
    judged: Seen,
    refused: BTreeMap<PathBuf, RefusedFile>,
}

/// What stands in files, where it is not what is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<PathBuf, Content>);

/// What stands in one, or why it cannot be read.
#[derive(Clone, Debug)]
struct Content(Result<SecretString, String>);

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Ok(one), Ok(other)) => one.expose_secret() == other.expose_secret(),
            (Err(one), Err(other)) => one == other,
            _ => false,
        }
    }
}

impl Eq for Content {}

/// A file that a setting names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// The variable, the key of the settings file, or the flag.
    pub setting: String,
    /// Where it is.
    pub path: PathBuf,
}

/// A file whose content cannot be used; what was in force before still is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFile {
    /// Which.
    pub file: SecretFile,
    /// What is wrong with it; no secret is in it.
    pub reason: String,
}

/// What two looks brought.
#[derive(Debug, Default)]
pub struct News {
    /// The settings with the secrets that are in force now, where any changed.
    pub settings: Option<Settings>,
    /// Whose new content is in force.
    pub taken: Vec<SecretFile>,
    /// Whose content is refused, and was not refused before for the same.
    pub refused: Vec<RefusedFile>,
    /// What was refused, and holds again what is in force.
    pub restored: Vec<SecretFile>,
    /// What is no longer as it was at the start and counts from the next start on.
    pub for_the_next_start: Vec<SecretFile>,
}

impl SecretFiles {
    /// Reads the settings of `serve`, and remembers of which files they are made.
    ///
    /// # Errors
    ///
    /// As [`Settings::from_args`].
    pub fn read(
        args: ServeArgs,
        environment: Environment,
    ) -> Result<(Settings, Self), ConfigError> {
        let files = Files::default();
        let settings = Settings::from_files(&args, &environment, &files)?;
        let secret_files = SecretFiles {
            args,
            environment,
            files,
            judged: Seen::default(),
            refused: BTreeMap::new(),
        };
        Ok((settings, secret_files))
    }

    /// Whether there is no file to look at.
    pub fn is_empty(&self) -> bool {
        !self.files.all().values().any(|file| file.is_regular)
    }

    /// Looks at every file. May take as long as the file system likes.
    pub fn look(&self) -> Seen {
        let mut seen = BTreeMap::new();
        for (path, file) in self.files.all() {
            if !file.is_regular {
                continue;
            }
            let content = Content(read_again(&path, file.max_bytes).map(SecretString::from));
            if content != Content(Ok(file.text)) {
                seen.insert(path, content);
            }
        }
        Seen(seen)
    }

    /// Whether that was not judged yet.
    pub fn is_news(&self, seen: &Seen) -> bool {
        *seen != self.judged
    }

    /// Judges what two looks, a while apart, saw alike. What differs is being written at the moment:
    /// half of a password may look like a whole one, and whoever sends the whole one would be turned
    /// away.
    pub fn judge(&mut self, seen: &Seen, again: &Seen) -> News {
        let mut news = News::default();
        for (path, file) in self.files.all() {
            let (content, before) = (again.0.get(&path), self.judged.0.get(&path).cloned());
            if seen.0.get(&path) != content || before.as_ref() == content {
                continue;
            }
            let secret_file = SecretFile {
                setting: file.setting.clone(),
                path: path.clone(),
            };
            let Some(content) = content else {
                self.judged.0.remove(&path);
                if self.refused.remove(&path).is_some() {
                    news.restored.push(secret_file);
                }
                continue;
            };
            if file.counts == Counts::FromTheStart {
                self.judged.0.insert(path, content.clone());
                news.for_the_next_start.push(secret_file);
                continue;
            }
            match self.settings_with(&path, &file, content) {
                Ok((settings, files)) => {
                    self.files = files;
                    self.judged.0.remove(&path);
                    self.refused.remove(&path);
                    news.settings = Some(settings);
                    news.taken.push(secret_file);
                }
                Err(reason) => {
                    let refused = RefusedFile {
                        file: secret_file,
                        reason,
                    };
                    self.judged.0.insert(path.clone(), content.clone());
                    self.refused.insert(path, refused.clone());
                    news.refused.push(refused);
                }
            }
        }
        news
    }

    /// Everything that is refused at the moment.
    pub fn refused(&self) -> impl Iterator<Item = &RefusedFile> {
        self.refused.values()
    }

    fn settings_with(
        &self,
        path: &Path,
        file: &NamedFile,
        content: &Content,
    ) -> Result<(Settings, Files), String> {
        let text = content.0.as_ref().map_err(|trouble| {
            format!(
                "{} names a file that cannot be read: {trouble}",
                file.setting
            )
        })?;
        let files = self.files.with(path, text);
        match Settings::from_files(&self.args, &self.environment, &files) {
            Ok(settings) => Ok((settings, files)),
            Err(error) => {
                let faults = error.faults().iter().map(ToString::to_string);
                Err(faults.collect::<Vec<_>>().join("; "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{AUTHORIZATION, HeaderMap};
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    const SETTINGS: &str = "
[[sources]]
name = 'us'
basic_auth_file = 'us.password'
[[sources]]
name = 'eu'
basic_auth_file = 'eu.password'
[[destinations]]
name = 'one'
environment_key_file = 'key'
";

    struct Desk {
        folder: tempfile::TempDir,
        files: SecretFiles,
    }

    impl Desk {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in [
                ("settings.toml", SETTINGS),
                ("us.password", "us:hush-1\n"),
                ("eu.password", "eu:hush-1\n"),
                ("key", "ser.hush-1\n"),
                ("token", "hush-1\n"),
                ("ledger", "sqlite://a.db"),
            ] {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            let path = |name: &str| folder.path().join(name).display().to_string();
            let environment = [
                ("COHORT_BRIDGE_CONFIG", path("settings.toml")),
                ("COHORT_BRIDGE_ADMIN_TOKEN_FILE", path("token")),
                ("DATABASE_URL_FILE", path("ledger")),
            ];
            let environment = environment.into_iter().collect();
            let (_, files) = SecretFiles::read(ServeArgs::default(), environment).unwrap();
            Desk { folder, files }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.path(name), text).unwrap();
        }

        fn news(&mut self) -> News {
            let seen = self.files.look();
            self.files.judge(&seen, &seen)
        }

        /// The reason of the only file that is newly refused.
        fn refused(&mut self) -> String {
            let news = self.news();
            assert!(news.settings.is_none() && news.taken.is_empty(), "{news:?}");
            let [refused] = &news.refused[..] else {
                panic!("one: {news:?}");
            };
            assert!(!refused.reason.contains("hush"), "{refused:?}");
            refused.reason.clone()
        }
    }

    fn lets_in(settings: &Settings, source: usize, pair: &str) -> bool {
        let mut headers = HeaderMap::new();
        let header = format!("Basic {}", BASE64_STANDARD.encode(pair));
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        let credentials = &settings.sources[source].credentials;
        credentials.verify(&headers, b"", 0).is_ok()
    }

    fn name(path: &Path) -> &str {
        path.file_name().and_then(|name| name.to_str()).unwrap()
    }

    #[test]
    fn what_did_not_change_is_no_news() {
        let mut desk = Desk::new();
        assert!(!desk.files.is_empty());
        let seen = desk.files.look();
        assert!(!desk.files.is_news(&seen));
        desk.write("key", "ser.hush-1\n");
        assert!(!desk.files.is_news(&desk.files.look()));
        assert!(desk.news().settings.is_none());
    }

    #[test]
    fn a_good_one_is_in_force_though_another_is_bad() {
        let mut desk = Desk::new();
        desk.write("us.password", "us:hush-1 us:hush-2");
        desk.write("eu.password", "hush");
        desk.write("token", "hush-2");
        let news = desk.news();
        let settings = news.settings.expect("some changed");
        for (source, pair, expected) in [
            (0, "us:hush-1", true),
            (0, "us:hush-2", true),
            (1, "eu:hush-1", true),
            (1, "hush", false),
        ] {
            assert_eq!(lets_in(&settings, source, pair), expected, "{pair}");
        }
        assert_eq!(settings.admin_token.unwrap().expose_secret(), "hush-2");
        let taken: Vec<_> = news.taken.iter().map(|file| name(&file.path)).collect();
        assert_eq!(taken, ["token", "us.password"]);
        assert_eq!(news.taken[0].setting, "COHORT_BRIDGE_ADMIN_TOKEN_FILE");
        assert_eq!(news.taken[1].setting, "basic_auth_file of [[sources]]");
        assert_eq!(name(&news.refused[0].file.path), "eu.password");

        // And what is in force stays, whatever comes next.
        desk.write("us.password", "us:hush-2");
        let settings = desk.news().settings.expect("one changed");
        assert!(!lets_in(&settings, 0, "us:hush-1") && lets_in(&settings, 0, "us:hush-2"));
        assert!(lets_in(&settings, 1, "eu:hush-1"));
        assert_eq!(settings.admin_token.unwrap().expose_secret(), "hush-2");
    }

    #[test]
    fn whatever_is_wrong_is_refused_and_told_once_until_it_is_mended() {
        let mut desk = Desk::new();
        let key = desk.path("key");
        desk.write("key", "");
        assert!(desk.refused().contains("it is empty"));
        desk.write("key", "\n");
        assert!(desk.refused().contains("it is empty"));
        desk.write("key", "hush hush");
        assert!(desk.refused().contains("it must be visible ASCII"));
        assert!(!desk.files.is_news(&desk.files.look()));
        assert!(desk.news().refused.is_empty(), "told once");
        // Another bad one is another mistake of somebody.
        desk.write("key", "hush hush hush");
        desk.refused();
        std::fs::write(&key, b"\xff\xfe").unwrap();
        assert!(desk.refused().contains("it is not UTF-8"));
        std::fs::remove_file(&key).unwrap();
        assert!(desk.refused().contains("No such file"));
        std::fs::create_dir(&key).unwrap();
        assert!(desk.refused().contains("not a regular file"));
        std::fs::remove_dir(&key).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &key).unwrap();
        desk.news();
        assert_eq!(desk.files.refused().count(), 1);
        std::fs::remove_file(&key).unwrap();
        desk.write("key", &"hush".repeat(20_000));
        assert!(desk.refused().contains("it is longer than 65536 bytes"));
        desk.write("key", "ser.hush-1\n");
        let news = desk.news();
        assert_eq!(name(&news.restored[0].path), "key");
        assert!(news.settings.is_none() && news.refused.is_empty());
        assert_eq!(desk.files.refused().count(), 0);
    }

    /// A pipe to which nobody writes would keep whoever opens it for ever.
    #[test]
    fn a_pipe_is_not_waited_for() {
        let mut desk = Desk::new();
        let key = desk.path("key");
        std::fs::remove_file(&key).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&key).status();
        assert!(made.unwrap().success());
        assert!(desk.refused().contains("not a regular file"));
    }

    #[test]
    fn what_is_being_written_waits_until_it_stands() {
        let mut desk = Desk::new();
        desk.write("us.password", "us:hush");
        let half = desk.files.look();
        assert!(desk.files.is_news(&half));
        desk.write("us.password", "us:hush-2");
        let whole = desk.files.look();
        let news = desk.files.judge(&half, &whole);
        assert!(news.settings.is_none(), "{news:?}");
        assert!(desk.files.is_news(&whole));
        let news = desk.files.judge(&whole, &whole);
        assert!(lets_in(&news.settings.unwrap(), 0, "us:hush-2"));

        // Nor is what is about to be written told as empty.
        desk.write("us.password", "");
        let empty = desk.files.look();
        desk.write("us.password", "us:hush-3");
        let news = desk.files.judge(&empty, &desk.files.look());
        assert!(news.refused.is_empty(), "{news:?}");
    }

    #[test]
    fn what_is_no_rolling_secret_waits_for_the_next_start() {
        let mut desk = Desk::new();
        desk.write("settings.toml", "half of i");
        desk.write("ledger", "sqlite://b.db");
        let news = desk.news();
        let named = news.for_the_next_start.iter();
        let named: Vec<_> = named.map(|file| &*file.setting).collect();
        assert_eq!(named, ["DATABASE_URL_FILE", "--config"]);
        assert!(desk.news().for_the_next_start.is_empty(), "told once");
        // It keeps no secret out.
        desk.write("us.password", "us:hush-2");
        let settings = desk.news().settings.expect("one changed");
        assert!(lets_in(&settings, 0, "us:hush-2"));
        assert!(format!("{:?}", settings.database).contains("a.db"));
    }

    #[test]
    fn a_mounted_secret_that_kubernetes_turns_over_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, token) in [("..1", "hush-1"), ("..2", "hush-2")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("token"), token).unwrap();
        }
        let turn_to = |folder: &Path, version: &str| {
            std::os::unix::fs::symlink(version, folder.join("..data_tmp")).unwrap();
            std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        };
        turn_to(folder.path(), "..1");
        std::os::unix::fs::symlink("..data/token", at("token")).unwrap();
        let token = at("token").display().to_string();
        let environment = [
            ("COHORT_BRIDGE_ADMIN_TOKEN_FILE", &*token),
            ("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH", "u:p"),
            ("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "ser.k"),
        ];
        let environment = environment.into_iter().collect();
        let (_, files) = SecretFiles::read(ServeArgs::default(), environment).unwrap();
        let mut desk = Desk { folder, files };
        turn_to(desk.folder.path(), "..2");
        std::fs::remove_dir_all(desk.path("..1")).unwrap();
        let settings = desk.news().settings.expect("it changed");
        assert_eq!(settings.admin_token.unwrap().expose_secret(), "hush-2");
    }

    #[test]
    fn without_files_there_is_nothing_to_look_at() {
        let environment = [
            ("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH", "u:p"),
            ("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "ser.k"),
        ];
        let environment = environment.into_iter().collect();
        let (_, files) = SecretFiles::read(ServeArgs::default(), environment).unwrap();
        assert!(files.is_empty());
    }
}
