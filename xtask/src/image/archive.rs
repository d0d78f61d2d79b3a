//! One archive that every tool loads: an OCI image layout for `ctr`, `skopeo` and `podman`, and beside it
//! the `manifest.json` that `docker load` reads.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use oci_spec::image::{
    ANNOTATION_CREATED, ANNOTATION_DESCRIPTION, ANNOTATION_LICENSES, ANNOTATION_REF_NAME,
    ANNOTATION_REVISION, ANNOTATION_SOURCE, ANNOTATION_TITLE, ANNOTATION_VERSION, Arch,
    ConfigBuilder, Descriptor, HistoryBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
    SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::content::{Content, File};
use super::layer;
use super::origin::Origin;
use crate::manifests;

/// What `ctr image import` names the image by.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

const TITLE: &str = "Portcullis";
const DESCRIPTION: &str = "Kubernetes NetworkPolicy in eBPF, beside any CNI";
/// User space, and the eBPF object in it.
const LICENSES: &str = "Apache-2.0 AND (MIT OR GPL-2.0-only)";

/// A finished image.
pub(super) struct Image {
    /// Its name, with the tag.
    pub(super) name: String,
    /// The archive.
    pub(super) archive: Vec<u8>,
    /// Digest of the manifest, by which registries know the image.
    pub(super) manifest: String,
    /// Digest of the configuration, which docker calls the image's id.
    pub(super) config: String,
}

impl Image {
    /// Digest of the archive.
    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", hex(&self.archive))
    }
}

/// Packs files into an image.
pub(super) fn pack(content: &Content, origin: &Origin) -> Result<Image> {
    let name = manifests::image();
    let mut blobs = Blobs::default();
    let tar = layer::tar(&content.files, origin.seconds())?;
    let compressed = blobs.add(MediaType::ImageLayerGzip, layer::gzip(&tar)?)?;
    let config = configuration(&format!("sha256:{}", hex(&tar)), origin)?;
    let config = blobs.add(MediaType::ImageConfig, config)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config.clone())
        .layers([compressed.clone()])
        .annotations(labels(origin))
        .build()?;
    let mut manifest = blobs.add(MediaType::ImageManifest, bytes(&manifest)?)?;
    let digests = (manifest.digest().to_string(), config.digest().to_string());
    let (_, tag) = name.rsplit_once(':').context("an image's name has a tag")?;
    manifest.set_platform(Some(
        PlatformBuilder::default()
            .architecture(Arch::Amd64)
            .os(Os::Linux)
            .build()?,
    ));
    manifest.set_annotations(Some(strings([
        (ANNOTATION_REF_NAME, tag),
        (CONTAINERD_NAME, &name),
    ])));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests([manifest])
        .build()?;
    let oci_layout = OciLayoutBuilder::default()
        .image_layout_version("1.0.0")
        .build()?;
    let docker = json!([{
        "Config": blob_path(&config),
        "RepoTags": [&name],
        "Layers": [blob_path(&compressed)],
    }]);
    let mut files = blobs.files;
    files.extend([
        regular("index.json", bytes(&index)?),
        regular("manifest.json", bytes(&docker)?),
        regular("oci-layout", bytes(&oci_layout)?),
    ]);
    let files = Content::new(files).files;
    Ok(Image {
        name,
        archive: layer::tar(&files, origin.seconds())?,
        manifest: digests.0,
        config: digests.1,
    })
}

/// The image's configuration: what is run, and how it looks in `inspect`. `layer` is the digest of the
/// layer before compression.
fn configuration(layer: &str, origin: &Origin) -> Result<Vec<u8>> {
    let config = ConfigBuilder::default()
        .user("0:0")
        .env(["PATH=/usr/bin".to_owned()])
        .entrypoint(["/usr/bin/policy-agent".to_owned()])
        .cmd(["run".to_owned()])
        .working_dir("/")
        .labels(labels(origin))
        .build()?;
    let history = HistoryBuilder::default()
        .created(origin.created())
        .created_by("cargo xtask image")
        .build()?;
    let configuration = ImageConfigurationBuilder::default()
        .created(origin.created())
        .architecture(Arch::Amd64)
        .os(Os::Linux)
        .config(config)
        .rootfs(
            RootFsBuilder::default()
                .typ("layers")
                .diff_ids([layer.to_owned()])
                .build()?,
        )
        .history([history])
        .build()?;
    bytes(&configuration)
}

fn labels(origin: &Origin) -> HashMap<String, String> {
    strings([
        (ANNOTATION_TITLE, TITLE),
        (ANNOTATION_DESCRIPTION, DESCRIPTION),
        (ANNOTATION_VERSION, env!("CARGO_PKG_VERSION")),
        (ANNOTATION_REVISION, &origin.revision),
        (ANNOTATION_CREATED, &origin.created()),
        (ANNOTATION_LICENSES, LICENSES),
        (ANNOTATION_SOURCE, env!("CARGO_PKG_REPOSITORY")),
    ])
}

fn strings<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// What descriptors point to.
#[derive(Default)]
struct Blobs {
    files: Vec<File>,
}

impl Blobs {
    fn add(&mut self, media_type: MediaType, data: Vec<u8>) -> Result<Descriptor> {
        let digest: Sha256Digest = hex(&data).parse()?;
        let descriptor = Descriptor::new(media_type, data.len() as u64, digest);
        self.files.push(regular(&blob_path(&descriptor), data));
        Ok(descriptor)
    }
}

fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest().digest())
}

fn regular(path: &str, data: Vec<u8>) -> File {
    File {
        path: path.to_owned(),
        mode: 0o644,
        data,
    }
}

/// JSON. By way of a value, whose keys are sorted: labels are in no order of their own.
fn bytes<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

fn hex(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
