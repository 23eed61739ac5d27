use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ClientConfigKey, ObjectStore};

/// How buckets are reached.
#[derive(Clone, Debug)]
pub struct Access {
    s3: AmazonS3Builder,
}

impl Access {
    /// As the environment says: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`,
    /// `AWS_ALLOW_HTTP` and so on.
    #[must_use]
    pub fn environment() -> Self {
        AmazonS3Builder::from_env().into()
    }

    /// For objects that are read in one long request.
    #[must_use]
    pub fn streaming(mut self) -> Self {
        if std::env::var_os("AWS_TIMEOUT").is_none() {
            // The default bounds whole requests to 30 seconds, too short to stream a tar; what must not last is silence.
            let key = |key| AmazonS3ConfigKey::Client(key);
            self.s3 = self.s3.with_config(key(ClientConfigKey::Timeout), "1 day");
            self.s3 = self.s3.with_config(key(ClientConfigKey::ReadTimeout), "30 seconds");
        }
        self
    }

    /// The bucket of this name; nothing is asked of it yet.
    ///
    /// # Errors
    /// The settings make no sense.
    pub fn bucket(&self, name: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Only the first call can succeed; a provider that the program chose before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Deleting several objects by one request is not what every provider can do.
        Ok(Arc::new(self.s3.clone().with_disable_bulk_delete(true).with_bucket_name(name).build()?))
    }
}

impl From<AmazonS3Builder> for Access {
    fn from(s3: AmazonS3Builder) -> Self {
        Self { s3 }
    }
}
