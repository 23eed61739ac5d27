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

use crate::seal::{self, SealError, SealedFile};
use crate::writer::{MAX_CONCURRENT_PARTS, PART_BYTES};
use crate::{CheckpointWriter, Error, names};
use object_storage::{Access, BlockingRuntime, Location};

/// The checkpoints of a run, in their own folder or bucket prefix.
#[derive(Debug)]
pub struct Checkpoints {
    location: String,
    pub(crate) store: Arc<dyn ObjectStore>,
    prefix: Key,
    /// The folder; none for a bucket.
    folder: Option<PathBuf>,
    pub(crate) runtime: BlockingRuntime,
}

/// The content of a checkpoint location.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Names of complete checkpoints, that is, of folders or prefixes with a seal. Damage is
    /// detected only when a checkpoint is read.
    pub sealed: BTreeSet<String>,
    /// Names of incomplete checkpoints, that is, of folders or prefixes without a seal.
    pub unsealed: BTreeSet<String>,
    /// Names of files and folders that cannot be checkpoints.
    pub not_checkpoints: BTreeSet<String>,
}

/// A checkpoint whose files match its seal: in its folder, or as a local copy if it is in a bucket.
#[derive(Debug)]
pub struct VerifiedCheckpoint {
    path: PathBuf,
    /// The temporary copy of a checkpoint in a bucket; deleted when this is dropped.
    _copy: Option<TempDir>,
}

impl VerifiedCheckpoint {
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
    /// `location` has another form, the folder cannot be created, or the settings for buckets are
    /// invalid.
    pub fn open(location: &str, access: &Access) -> Result<Self, Error> {
        let system_error = |error: std::io::Error| Error::system(location, &error);
        let (store, prefix, folder): (Arc<dyn ObjectStore>, _, _) = match Location::parse(location)? {
            Location::Folder(folder) => {
                std::fs::create_dir_all(&folder).map_err(system_error)?;
                let folder = std::fs::canonicalize(folder).map_err(system_error)?;
                let store = LocalFileSystem::new_with_prefix(&folder);
                // With fsync, a file is on disk before the seal lists it, and the seal is on disk
                // before `write` returns.
                let store = store.map_err(|error| Error::store(location, &error))?.with_fsync(true);
                (Arc::new(store), Key::default(), Some(folder))
            }
            Location::Bucket { name, prefix } => {
                (access.bucket(&name).map_err(|error| Error::store(location, &error))?, prefix, None)
            }
        };
        let runtime = BlockingRuntime::new("checkpoints").map_err(system_error)?;
        Ok(Self { location: location.trim_end_matches('/').to_owned(), store, prefix, folder, runtime })
    }

    /// As [`open`](Self::open), for a location that has to exist.
    ///
    /// # Errors
    /// As for `open`; or the folder does not exist.
    pub fn open_existing(location: &str, access: &Access) -> Result<Self, Error> {
        if let Location::Folder(folder) = Location::parse(location)? {
            std::fs::metadata(folder).map_err(|error| Error::system(location, &error))?;
        }
        Self::open(location, access)
    }

    /// The folder; none for a bucket.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The path or URL of the location.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Writes the checkpoint `name` with the files that `fill` adds. Deletes an existing checkpoint
    /// of that name first. The checkpoint is complete and durable on return.
    ///
    /// # Errors
    /// The name is invalid, `fill` fails, or a file cannot be written. In the last two cases the
    /// files of the checkpoint are deleted if possible.
    pub fn write(
        &self,
        name: &str,
        fill: impl FnOnce(&mut CheckpointWriter) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.delete(name)?;
        let mut writer = CheckpointWriter::new(self, name);
        fill(&mut writer).and_then(|()| writer.seal()).inspect_err(|_| {
            // The first error is reported. If the deletion fails too, the remaining files have no
            // seal, so they are not a checkpoint.
            _ = self.delete(name);
        })
    }

    /// Copies the checkpoint `name` to a temporary folder, unless it is in a local folder, and
    /// verifies all checksums.
    ///
    /// # Errors
    /// See [`Error::is_damage`]; or the location cannot be read.
    pub fn read(&self, name: &str) -> Result<VerifiedCheckpoint, Error> {
        names::check(name)?;
        let files = self.sealed_files(name)?;
        if let Some(folder) = &self.folder {
            files.iter().try_for_each(|file| self.copy_and_verify(name, file, &mut std::io::sink()))?;
            return Ok(VerifiedCheckpoint { path: folder.join(name), _copy: None });
        }
        let temporary_folder = std::env::temp_dir();
        let system_error = |error| Error::system(temporary_folder.display().to_string(), &error);
        let copy = tempfile::tempdir().map_err(system_error)?;
        for file in &files {
            let mut target = File::create(copy.path().join(&file.name)).map_err(system_error)?;
            self.copy_and_verify(name, file, &mut target)?;
        }
        Ok(VerifiedCheckpoint { path: copy.path().to_owned(), _copy: Some(copy) })
    }

    /// Reads one file of the checkpoint `name`, and verifies its checksum.
    ///
    /// # Errors
    /// See [`Error::is_damage`]; or the location cannot be read.
    pub fn read_file(&self, name: &str, file: &str) -> Result<Vec<u8>, Error> {
        names::check(name)?;
        let files = self.sealed_files(name)?;
        let entry = files.iter().find(|entry| entry.name == file).ok_or_else(|| Error::Damaged {
            location: self.location_of(name, ""),
            problem: format!("{file} is missing"),
        })?;
        let mut bytes = Vec::new();
        self.copy_and_verify(name, entry, &mut bytes)?;
        Ok(bytes)
    }

    /// The files in the seal of `name`.
    fn sealed_files(&self, name: &str) -> Result<Vec<SealedFile>, Error> {
        let location = self.location_of(name, "");
        let damaged = |problem| Error::Damaged { location: location.clone(), problem };
        let sealed = self.runtime.block_on(async {
            let response = self.store.get(&self.key(name, seal::SEAL_FILE)).await?;
            if response.meta.size > seal::MAX_SEAL_BYTES { Ok(None) } else { response.bytes().await.map(Some) }
        });
        let sealed = match sealed {
            Ok(Some(sealed)) => sealed,
            Ok(None) => {
                return Err(damaged(format!("{} is longer than {} bytes", seal::SEAL_FILE, seal::MAX_SEAL_BYTES)));
            }
            Err(object_store::Error::NotFound { .. }) => return Err(Error::Missing { location }),
            Err(error) => return Err(Error::store(location, &error)),
        };
        seal::parse(&sealed).map_err(|error| match error {
            SealError::Damaged(problem) => damaged(problem),
            SealError::Version(found) => Error::Version { location: location.clone(), found, known: seal::SEAL_FORMAT },
        })
    }

    /// Copies a file of the checkpoint `name` to `target`, and verifies its size and checksum.
    fn copy_and_verify(&self, name: &str, file: &SealedFile, target: &mut impl Write) -> Result<(), Error> {
        let key = self.key(name, &file.name);
        let damaged = |problem| Error::Damaged {
            location: self.location_of(name, ""),
            problem: format!("{} {problem}", file.name),
        };
        let store_error = |error: object_store::Error| match error {
            object_store::Error::NotFound { .. } => damaged("is missing".to_owned()),
            error => Error::store(self.location_of(name, &file.name), &error),
        };
        self.runtime.block_on(async {
            let size = self.store.head(&key).await.map_err(store_error)?.size;
            if size != file.size {
                return Err(damaged(format!("has {size} bytes, {} were written", file.size)));
            }
            let starts = (0..file.size).step_by(PART_BYTES);
            let parts = starts.map(|start| self.store.get_range(&key, start..file.size.min(start + PART_BYTES as u64)));
            let mut parts = stream::iter(parts).buffered(MAX_CONCURRENT_PARTS);
            let mut hash = Sha256::new();
            while let Some(part) = parts.try_next().await.map_err(store_error)? {
                hash.update(&part);
                target
                    .write_all(&part)
                    .map_err(|error| Error::system(std::env::temp_dir().to_string_lossy(), &error))?;
            }
            if format!("{:x}", hash.finalize()) != file.sha256 {
                return Err(damaged("is not what was written: its SHA-256 differs".to_owned()));
            }
            Ok(())
        })
    }

    /// Lists the checkpoints and other content of the location.
    ///
    /// # Errors
    /// The location cannot be read.
    pub fn list(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for (name, is_folder) in self.names()? {
            if !is_folder || names::check(&name).is_err() {
                listing.not_checkpoints.insert(name);
                continue;
            }
            match self.runtime.block_on(self.store.head(&self.key(&name, seal::SEAL_FILE))) {
                Ok(_) => listing.sealed.insert(name),
                Err(object_store::Error::NotFound { .. }) => listing.unsealed.insert(name),
                Err(error) => return Err(Error::store(self.location_of(&name, seal::SEAL_FILE), &error)),
            };
        }
        Ok(listing)
    }

    /// The names at the location, and whether each is a folder or prefix with a Unicode name.
    fn names(&self) -> Result<Vec<(String, bool)>, Error> {
        if let Some(folder) = &self.folder {
            // Names in a folder may not be Unicode, for which `object_store` would fail.
            let name = |entry: std::fs::DirEntry| {
                let name = entry.file_name();
                (name.to_string_lossy().into_owned(), name.to_str().is_some() && entry.path().is_dir())
            };
            let entries = std::fs::read_dir(folder).and_then(|entries| entries.map(|entry| entry.map(name)).collect());
            return entries.map_err(|error| Error::system(&self.location, &error));
        }
        let listed = self.runtime.block_on(self.store.list_with_delimiter(Some(&self.prefix)));
        let listed = listed.map_err(|error| Error::store(&self.location, &error))?;
        let prefixes = listed.common_prefixes.iter().map(|prefix| (prefix, true));
        let names = prefixes.chain(listed.objects.iter().map(|object| (&object.location, false)));
        Ok(names.filter_map(|(key, is_prefix)| Some((key.filename()?.to_owned(), is_prefix))).collect())
    }

    /// Deletes the checkpoint `name`, complete or not. Deletes the seal first, so that the files
    /// that an interrupted deletion leaves are not a checkpoint.
    ///
    /// # Errors
    /// The name is invalid, or a file cannot be listed or deleted.
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        names::check(name)?;
        match &self.folder {
            Some(folder) => {
                delete_folder(&folder.join(name)).map_err(|error| Error::system(self.location_of(name, ""), &error))
            }
            None => {
                let deleted = self.runtime.block_on(self.delete_objects(name));
                deleted.map_err(|error| Error::store(self.location_of(name, ""), &error))
            }
        }
    }

    async fn delete_objects(&self, name: &str) -> object_store::Result<()> {
        let delete = async |key: &Key| match self.store.delete(key).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            result => result,
        };
        delete(&self.key(name, seal::SEAL_FILE)).await?;
        let remaining: Vec<_> = self.store.list(Some(&self.prefix.clone().join(name))).try_collect().await?;
        for object in remaining {
            delete(&object.location).await?;
        }
        Ok(())
    }

    pub(crate) fn key(&self, name: &str, file: &str) -> Key {
        self.prefix.clone().join(name).join(file)
    }

    /// The path or URL of a file of a checkpoint, or of the checkpoint itself if `file` is empty;
    /// for messages.
    pub(crate) fn location_of(&self, name: &str, file: &str) -> String {
        let location = format!("{}/{name}/{file}", self.location);
        location.trim_end_matches('/').to_owned()
    }
}

/// Deletes a checkpoint's folder, the seal first. Also deletes files that `object_store` does not
/// list, such as those of an interrupted upload.
fn delete_folder(folder: &Path) -> std::io::Result<()> {
    let existed = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    };
    if existed(std::fs::remove_file(folder.join(seal::SEAL_FILE)))? {
        File::open(folder)?.sync_all()?;
    }
    existed(std::fs::remove_dir_all(folder)).map(|_| ())
}

/// Checks whether checkpoints can be written to a location: creates a file there, or in the nearest
/// existing parent folder, and deletes it.
///
/// # Errors
/// The location cannot be written.
pub fn check_writable(location: &str, access: &Access) -> Result<(), Error> {
    if let Location::Folder(folder) = Location::parse(location)? {
        let system_error = |error| Error::system(location, &error);
        let folder = std::path::absolute(folder).map_err(system_error)?;
        let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        return tempfile::tempfile_in(existing).map(|_| ()).map_err(system_error);
    }
    let checkpoints = Checkpoints::open(location, access)?;
    let probe = checkpoints.prefix.clone().join("probe");
    let written = checkpoints.runtime.block_on(async {
        checkpoints.store.put(&probe, Vec::new().into()).await?;
        checkpoints.store.delete(&probe).await
    });
    written.map_err(|error| Error::store(location, &error))
}

#[cfg(test)]
mod tests;
