use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ClientConfigKey, ObjectStore};

/// Credentials and endpoint for S3 buckets.
#[derive(Clone, Debug)]
pub struct Access {
    s3: AmazonS3Builder,
}

impl Access {
    /// Settings from the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
    /// `AWS_ENDPOINT`, `AWS_ALLOW_HTTP` and so on.
    #[must_use]
    pub fn from_environment() -> Self {
        AmazonS3Builder::from_env().into()
    }

    /// The same settings, with timeouts for objects that are read in one long request. The timeouts
    /// are left unchanged if the environment sets `AWS_TIMEOUT`.
    #[must_use]
    pub fn for_streaming(mut self) -> Self {
        if std::env::var_os("AWS_TIMEOUT").is_none() {
            // By default a request may take 30 seconds in all, too short to stream a tar. The time
            // without data is limited instead.
            let key = |key| AmazonS3ConfigKey::Client(key);
            self.s3 = self.s3.with_config(key(ClientConfigKey::Timeout), "1 day");
            self.s3 = self.s3.with_config(key(ClientConfigKey::ReadTimeout), "30 seconds");
        }
        self
    }

    /// The bucket of this name. Sends no request yet.
    ///
    /// # Errors
    /// The settings are invalid.
    pub fn bucket(&self, name: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Fails if the program has installed a provider of cryptography before, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Not every S3 service supports deleting several objects in one request.
        Ok(Arc::new(self.s3.clone().with_disable_bulk_delete(true).with_bucket_name(name).build()?))
    }
}

impl From<AmazonS3Builder> for Access {
    fn from(s3: AmazonS3Builder) -> Self {
        Self { s3 }
    }
}
