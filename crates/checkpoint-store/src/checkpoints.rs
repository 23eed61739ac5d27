use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::files::{AT_ONCE, PART};
use crate::seal::{self, Entry, SealError};
use crate::{Error, Files, names};
use object_io::{Access, Blocking, Location};

/// The checkpoints of a run, in a folder or bucket prefix of their own.
#[derive(Debug)]
pub struct Checkpoints {
    place: String,
    pub(crate) store: Arc<dyn ObjectStore>,
    prefix: Key,
    /// The folder; none for a bucket.
    folder: Option<PathBuf>,
    pub(crate) blocking: Blocking,
}

/// The content of a checkpoint location.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Names of checkpoints. Damage is detected only when they are read.
    pub sealed: BTreeSet<String>,
    /// Names of incomplete checkpoints.
    pub unsealed: BTreeSet<String>,
    /// Names of everything else.
    pub foreign: BTreeSet<String>,
}

/// A local copy of a checkpoint that has passed all checks.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    /// Deleted when this is dropped.
    _copy: Option<TempDir>,
}

impl Fetched {
    /// The folder with the files of the checkpoint.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Checkpoints {
    /// Opens a path, `file:///folder` or `s3://bucket/prefix`. Creates a folder; sends no request
    /// to a bucket.
    ///
    /// # Errors
    /// The location is none of these, the folder cannot be created, or the settings for buckets are
    /// invalid.
    pub fn open(place: &str, access: &Access) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::system(place, &error);
        let (store, prefix, folder): (Arc<dyn ObjectStore>, _, _) = match Location::parse(place)? {
            Location::Folder(folder) => {
                std::fs::create_dir_all(&folder).map_err(failed)?;
                let folder = std::fs::canonicalize(folder).map_err(failed)?;
                let store = LocalFileSystem::new_with_prefix(&folder);
                // A file is on disk before the seal lists it, and the seal before the write is
                // reported.
                let store = store.map_err(|error| Error::store(place, &error))?.with_fsync(true);
                (Arc::new(store), Key::default(), Some(folder))
            }
            Location::Bucket { name, prefix } => {
                (access.bucket(&name).map_err(|error| Error::store(place, &error))?, prefix, None)
            }
        };
        let blocking = Blocking::new("checkpoints").map_err(failed)?;
        Ok(Self { place: place.trim_end_matches('/').to_owned(), store, prefix, folder, blocking })
    }

    /// As [`open`](Self::open), for a location that has to exist.
    ///
    /// # Errors
    /// As above; or the folder does not exist.
    pub fn open_existing(place: &str, access: &Access) -> Result<Self, Error> {
        if let Location::Folder(folder) = Location::parse(place)? {
            std::fs::metadata(folder).map_err(|error| Error::system(place, &error))?;
        }
        Self::open(place, access)
    }

    /// The folder; none for a bucket.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The path or URL.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Writes the checkpoint `name` with the files that `fill` adds. Deletes an existing one of
    /// that name first. The checkpoint is complete and durable on return.
    ///
    /// # Errors
    /// The name is invalid, or a file cannot be written; then its files are deleted, as far as
    /// possible.
    pub fn write(&self, name: &str, fill: impl FnOnce(&mut Files) -> Result<(), Error>) -> Result<(), Error> {
        self.delete(name)?;
        let mut files = Files::new(self, name);
        fill(&mut files).and_then(|()| files.seal()).inspect_err(|_| {
            // The first error is reported; files without a seal are no checkpoint.
            _ = self.delete(name);
        })
    }

    /// Copies the checkpoint `name` to this machine, unless it is local, and verifies all
    /// checksums.
    ///
    /// # Errors
    /// See [`Error::is_damage`]; or the location cannot be read.
    pub fn read(&self, name: &str) -> Result<Fetched, Error> {
        names::check(name)?;
        let files = self.files(name)?;
        if let Some(folder) = &self.folder {
            files.iter().try_for_each(|file| self.check(name, file, &mut std::io::sink()))?;
            return Ok(Fetched { path: folder.join(name), _copy: None });
        }
        let temporary = std::env::temp_dir();
        let failed = |error| Error::system(temporary.display().to_string(), &error);
        let copy = tempfile::tempdir().map_err(failed)?;
        for file in &files {
            let mut to = File::create(copy.path().join(&file.name)).map_err(failed)?;
            self.check(name, file, &mut to)?;
        }
        Ok(Fetched { path: copy.path().to_owned(), _copy: Some(copy) })
    }

    /// Reads one file of the checkpoint `name`, and verifies its checksum.
    ///
    /// # Errors
    /// See [`Error::is_damage`]; or the location cannot be read.
    pub fn read_file(&self, name: &str, file: &str) -> Result<Vec<u8>, Error> {
        names::check(name)?;
        let files = self.files(name)?;
        let entry = files
            .iter()
            .find(|entry| entry.name == file)
            .ok_or_else(|| Error::Damaged { place: self.place_of(name, ""), problem: format!("{file} is missing") })?;
        let mut bytes = Vec::new();
        self.check(name, entry, &mut bytes)?;
        Ok(bytes)
    }

    /// The files in the seal of `name`.
    fn files(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let place = self.place_of(name, "");
        let damaged = |problem| Error::Damaged { place: place.clone(), problem };
        let sealed = self.blocking.wait(async {
            let found = self.store.get(&self.key(name, seal::FILE)).await?;
            if found.meta.size > seal::MAX_BYTES { Ok(None) } else { found.bytes().await.map(Some) }
        });
        let sealed = match sealed {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Err(damaged(format!("{} is longer than {} bytes", seal::FILE, seal::MAX_BYTES))),
            Err(object_store::Error::NotFound { .. }) => return Err(Error::Missing { place }),
            Err(error) => return Err(Error::store(place, &error)),
        };
        seal::read(&sealed).map_err(|broken| match broken {
            SealError::Damaged(problem) => damaged(problem),
            SealError::Version(found) => Error::Version { place: place.clone(), found, known: seal::FORMAT },
        })
    }

    /// Copies a file to `to`, and verifies size and checksum.
    fn check(&self, name: &str, file: &Entry, to: &mut impl Write) -> Result<(), Error> {
        let key = self.key(name, &file.name);
        let damaged =
            |problem| Error::Damaged { place: self.place_of(name, ""), problem: format!("{} {problem}", file.name) };
        let failed = |error: object_store::Error| match error {
            object_store::Error::NotFound { .. } => damaged("is missing".to_owned()),
            error => Error::store(self.place_of(name, &file.name), &error),
        };
        self.blocking.wait(async {
            let found = self.store.head(&key).await.map_err(failed)?.size;
            if found != file.size {
                return Err(damaged(format!("has {found} bytes, {} were written", file.size)));
            }
            let starts = (0..file.size).step_by(PART);
            let parts = starts.map(|start| self.store.get_range(&key, start..file.size.min(start + PART as u64)));
            let mut parts = stream::iter(parts).buffered(AT_ONCE);
            let mut hash = Sha256::new();
            while let Some(part) = parts.try_next().await.map_err(failed)? {
                hash.update(&part);
                to.write_all(&part).map_err(|error| Error::system(std::env::temp_dir().to_string_lossy(), &error))?;
            }
            if format!("{:x}", hash.finalize()) != file.sha256 {
                return Err(damaged("is not what was written: its SHA-256 differs".to_owned()));
            }
            Ok(())
        })
    }

    /// Lists the location.
    ///
    /// # Errors
    /// The location cannot be read.
    pub fn list(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for (name, may_be_one) in self.names()? {
            if !may_be_one || names::check(&name).is_err() {
                listing.foreign.insert(name);
                continue;
            }
            match self.blocking.wait(self.store.head(&self.key(&name, seal::FILE))) {
                Ok(_) => listing.sealed.insert(name),
                Err(object_store::Error::NotFound { .. }) => listing.unsealed.insert(name),
                Err(error) => return Err(Error::store(self.place_of(&name, seal::FILE), &error)),
            };
        }
        Ok(listing)
    }

    /// The names at the location, and whether they may be checkpoints: folders or prefixes.
    fn names(&self) -> Result<Vec<(String, bool)>, Error> {
        if let Some(folder) = &self.folder {
            // Names in a folder may not be Unicode, for which `object_store` would fail.
            let name = |entry: std::fs::DirEntry| {
                let name = entry.file_name();
                (name.to_string_lossy().into_owned(), name.to_str().is_some() && entry.path().is_dir())
            };
            let entries = std::fs::read_dir(folder).and_then(|entries| entries.map(|entry| entry.map(name)).collect());
            return entries.map_err(|error| Error::system(&self.place, &error));
        }
        let listed = self.blocking.wait(self.store.list_with_delimiter(Some(&self.prefix)));
        let listed = listed.map_err(|error| Error::store(&self.place, &error))?;
        let prefixes = listed.common_prefixes.iter().map(|prefix| (prefix, true));
        let names = prefixes.chain(listed.objects.iter().map(|object| (&object.location, false)));
        Ok(names.filter_map(|(key, is_prefix)| Some((key.filename()?.to_owned(), is_prefix))).collect())
    }

    /// Deletes the checkpoint `name`, complete or not. Deletes the seal first, so that the rest of
    /// an interrupted deletion is no checkpoint.
    ///
    /// # Errors
    /// The name is invalid, or a file cannot be deleted.
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        names::check(name)?;
        match &self.folder {
            Some(folder) => {
                delete_folder(&folder.join(name)).map_err(|error| Error::system(self.place_of(name, ""), &error))
            }
            None => {
                let deleted = self.blocking.wait(self.delete_objects(name));
                deleted.map_err(|error| Error::store(self.place_of(name, ""), &error))
            }
        }
    }

    async fn delete_objects(&self, name: &str) -> object_store::Result<()> {
        let delete = async |key: &Key| match self.store.delete(key).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            deleted => deleted,
        };
        delete(&self.key(name, seal::FILE)).await?;
        let left: Vec<_> = self.store.list(Some(&self.prefix.clone().join(name))).try_collect().await?;
        for object in left {
            delete(&object.location).await?;
        }
        Ok(())
    }

    pub(crate) fn key(&self, name: &str, file: &str) -> Key {
        self.prefix.clone().join(name).join(file)
    }

    /// The path or URL of a checkpoint or of a file of it, for messages.
    pub(crate) fn place_of(&self, name: &str, file: &str) -> String {
        let place = format!("{}/{name}/{file}", self.place);
        place.trim_end_matches('/').to_owned()
    }
}

/// Also deletes files that `object_store` does not list, such as those of an interrupted upload.
fn delete_folder(folder: &Path) -> std::io::Result<()> {
    let there = |done: std::io::Result<()>| match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    };
    if there(std::fs::remove_file(folder.join(seal::FILE)))? {
        File::open(folder)?.sync_all()?;
    }
    there(std::fs::remove_dir_all(folder)).map(|_| ())
}

/// Checks whether checkpoints can be written to a location, without leaving anything there.
///
/// # Errors
/// Why they cannot.
pub fn check_writable(place: &str, access: &Access) -> Result<(), Error> {
    if let Location::Folder(folder) = Location::parse(place)? {
        let failed = |error| Error::system(place, &error);
        let folder = std::path::absolute(folder).map_err(failed)?;
        let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        return tempfile::tempfile_in(there).map(|_| ()).map_err(failed);
    }
    let checkpoints = Checkpoints::open(place, access)?;
    let probe = checkpoints.prefix.clone().join("probe");
    let written = checkpoints.blocking.wait(async {
        checkpoints.store.put(&probe, Vec::new().into()).await?;
        checkpoints.store.delete(&probe).await
    });
    written.map_err(|error| Error::store(place, &error))
}

#[cfg(test)]
mod tests;
