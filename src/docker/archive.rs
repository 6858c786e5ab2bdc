//! Files into and out of containers, whether these run or not: as tar archives, which is how Docker hands them over.

use std::io::Read as _;

use anyhow::Context as _;
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use super::{Docker, status};

impl Docker {
    /// A file or a folder of a container, as an archive whose entries begin with its own name.
    pub fn download(
        &self,
        container: &str,
        path: &str,
    ) -> impl Stream<Item = anyhow::Result<Bytes>> + use<> {
        let options = DownloadFromContainerOptionsBuilder::default()
            .path(path)
            .build();
        let what = format!("can't read {path} of the container {container}");
        self.api
            .download_from_container(container, Some(options))
            .map(move |part| part.with_context(|| what.clone()))
    }

    /// A file of a container; `None` where it isn't there.
    pub async fn file_of(&self, container: &str, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let archive = self
            .download(container, path)
            .try_fold(Vec::new(), async |mut all, part| {
                all.extend_from_slice(&part);
                Ok(all)
            });
        let archive = match archive.await {
            Ok(archive) => archive,
            Err(error) if error.downcast_ref().and_then(status) == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut archive = tar::Archive::new(archive.as_slice());
        let mut entry = archive
            .entries()?
            .next()
            .with_context(|| format!("{path} of {container} came empty"))??;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Unpacks an archive in a folder of a container, which is there. Owners and modes are those in the archive.
    pub async fn upload(
        &self,
        container: &str,
        folder: &str,
        archive: impl Stream<Item = Bytes> + Send + 'static,
    ) -> anyhow::Result<()> {
        let options = UploadToContainerOptionsBuilder::default()
            .path(folder)
            .build();
        self.api
            .upload_to_container(container, Some(options), bollard::body_stream(archive))
            .await
            .with_context(|| format!("can't write into {folder} of the container {container}"))
    }
}
