//! Where the settings of one source or one destination are looked for: in its table of the settings
//! file, and behind that in flags and variables, which hold for all tables that say nothing else.
//!
//! Secrets are one's own: with tables they stand there, and a flag or variable for one is a fault.

use std::path::Path;

use super::file::table::{Faults, Table};
use super::files::Files;
use super::reader::{Faulted, Reader};
use super::setting::{CONFIG, Exposure, Fallback, Setting};

/// The settings of one source or destination.
pub(super) struct Layers<'r, 'e, 't> {
    reader: &'r mut Reader<'e>,
    place: Place<'r, 't>,
}

/// Where they are.
pub(super) enum Place<'r, 't> {
    /// There are no tables: flags and variables alone.
    Flags,
    /// A settings file is named and cannot be understood: whatever is missing may stand there.
    Unknown,
    /// In a table too.
    Table {
        /// The table.
        table: &'r mut Table<'t>,
        /// What is wrong with its file.
        faults: &'r mut Faults<'t>,
        /// The file's folder.
        folder: &'r Path,
    },
}

impl<'r, 'e, 't> Layers<'r, 'e, 't> {
    pub(super) fn new(reader: &'r mut Reader<'e>, place: Place<'r, 't>) -> Self {
        Layers { reader, place }
    }

    /// The files that settings name.
    pub(super) fn files(&self) -> &'e Files {
        self.reader.files
    }

    /// Whether it is one of the file's, of which there may be several.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.place, Place::Table { .. })
    }

    /// The setting's value, its default where it is not given; a fault where it has none.
    pub(super) fn value<T>(
        &mut self,
        setting: &Setting,
        flag: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, Faulted> {
        if setting.exposure == Exposure::Secret || setting.fallback == Fallback::Required {
            return match self.optional(setting, flag, parse)? {
                Some(value) => Ok(value),
                None => self.fault(setting, "is required".to_owned()),
            };
        }
        let for_all = self.reader.value(setting, flag, &parse);
        match &mut self.place {
            Place::Table {
                table,
                faults,
                folder,
            } => match table.setting(setting, folder, faults, parse)? {
                Some(own) => Ok(own),
                None => for_all,
            },
            Place::Flags | Place::Unknown => for_all,
        }
    }

    /// The setting's value, `None` where it is not given.
    pub(super) fn optional<T>(
        &mut self,
        setting: &Setting,
        flag: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Faulted> {
        let Place::Table {
            table,
            faults,
            folder,
        } = &mut self.place
        else {
            return self.reader.optional(setting, flag, parse);
        };
        if setting.exposure != Exposure::Secret {
            let for_all = self.reader.optional(setting, flag, &parse);
            return match table.setting(setting, folder, faults, parse)? {
                Some(own) => Ok(Some(own)),
                None => for_all,
            };
        }
        let own = table.secret(setting, folder, self.reader.files, faults, parse);
        if self.reader.is_given(setting, flag) {
            let (name, key) = (table.name, setting.key());
            return self.reader.fault(
                setting,
                format!(
                    "cannot be given beside {name} in {} ({}): give each its {key} or {key}_file there",
                    CONFIG.flag, CONFIG.variable,
                ),
            );
        }
        own
    }

    /// Notes what is wrong with a setting: the rest of a sentence that begins with its name.
    pub(super) fn fault<T>(&mut self, setting: &Setting, message: String) -> Result<T, Faulted> {
        match &mut self.place {
            Place::Flags => self.reader.fault(setting, message),
            Place::Unknown => Err(Faulted),
            Place::Table { table, faults, .. } => {
                let key = match setting.exposure {
                    Exposure::Secret => format!("{0} (or {0}_file)", setting.key()),
                    Exposure::Plain | Exposure::Url => setting.key(),
                };
                faults.note(table.at, format!("{key} of {} {message}", table.name));
                Err(Faulted)
            }
        }
    }

    /// What faults call a setting here.
    pub(super) fn names(&self, setting: &Setting) -> String {
        match self.place {
            Place::Table { .. } => setting.key(),
            Place::Flags | Place::Unknown => setting.names(),
        }
    }
}
