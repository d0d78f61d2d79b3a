//! The archive is read back as the tools do that load it.

use std::collections::BTreeMap;
use std::io::Read as _;

use oci_spec::image::{Digest, ImageConfiguration, ImageIndex, ImageManifest, OciLayout};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Image, hex, pack};
use crate::image::content::{Content, File};
use crate::image::origin::Origin;
use crate::manifests;

fn file(path: &str, data: &str) -> File {
    File {
        path: path.to_owned(),
        mode: 0o755,
        data: data.as_bytes().to_vec(),
    }
}

fn image() -> Image {
    let files = vec![
        file("usr/bin/policyctl", "two"),
        file("usr/bin/policy-agent", "one"),
    ];
    let origin = Origin::new("abc".to_owned(), "1700000000").expect("valid");
    pack(&Content::new(files), &origin).expect("image")
}

fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    archive
        .entries()
        .expect("tar")
        .map(|entry| {
            let mut entry = entry.expect("entry");
            let mut data = Vec::new();
            entry.read_to_end(&mut data).expect("data");
            (entry.path().expect("path").display().to_string(), data)
        })
        .collect()
}

fn json<T: DeserializeOwned>(data: &[u8]) -> T {
    serde_json::from_slice(data).expect("JSON")
}

/// The blob of a digest, which is checked.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, digest: &Digest) -> &'a [u8] {
    let data = &files[&format!("blobs/sha256/{}", digest.digest())];
    assert_eq!(hex(data), digest.digest());
    data
}

#[test]
fn the_layout_leads_to_the_files() {
    let image = image();
    let files = unpack(&image.archive);
    let layout: OciLayout = json(&files["oci-layout"]);
    assert_eq!(layout.image_layout_version(), "1.0.0");
    let index: ImageIndex = json(&files["index.json"]);
    let [descriptor] = &index.manifests()[..] else {
        panic!("one manifest");
    };
    assert_eq!(descriptor.digest().to_string(), image.manifest);
    let annotations = descriptor.annotations().as_ref().expect("annotations");
    assert_eq!(annotations["io.containerd.image.name"], manifests::image());
    let tag = concat!("v", env!("CARGO_PKG_VERSION"));
    assert_eq!(annotations["org.opencontainers.image.ref.name"], tag);

    let manifest: ImageManifest = json(blob(&files, descriptor.digest()));
    assert_eq!(manifest.config().digest().to_string(), image.config);
    let [layer] = &manifest.layers()[..] else {
        panic!("one layer");
    };
    let compressed = blob(&files, layer.digest());
    assert_eq!(layer.size(), compressed.len() as u64);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(compressed)
        .read_to_end(&mut tar)
        .expect("gunzip");
    let config: ImageConfiguration = json(blob(&files, manifest.config().digest()));
    assert_eq!(
        config.rootfs().diff_ids()[..],
        [format!("sha256:{}", hex(&tar))]
    );
    let inside = unpack(&tar);
    assert_eq!(inside["usr/bin/policy-agent"], b"one");
    assert_eq!(inside["usr/bin/policyctl"], b"two");
}

#[test]
fn the_configuration_runs_the_agent_and_says_what_it_is() {
    let image = image();
    let files = unpack(&image.archive);
    let path = format!(
        "blobs/sha256/{}",
        image.config.trim_start_matches("sha256:")
    );
    let config: ImageConfiguration = json(&files[&path]);
    assert_eq!(config.created().as_deref(), Some("2023-11-14T22:13:20Z"));
    let labels = config.labels_of_config().expect("labels");
    for name in [
        "title",
        "description",
        "version",
        "revision",
        "licenses",
        "source",
    ] {
        let label = &labels[&format!("org.opencontainers.image.{name}")];
        assert!(!label.is_empty(), "{name}");
    }
    assert_eq!(labels["org.opencontainers.image.revision"], "abc");
    let config = config.config().as_ref().expect("config");
    let run = ["/usr/bin/policy-agent".to_owned()];
    assert_eq!(config.entrypoint().as_deref(), Some(&run[..]));
    assert_eq!(config.cmd().as_deref(), Some(&["run".to_owned()][..]));
}

#[test]
fn docker_finds_the_same_blobs() {
    let image = image();
    let files = unpack(&image.archive);
    let manifest: Value = json(&files["manifest.json"]);
    let [only] = &manifest.as_array().expect("list")[..] else {
        panic!("one image");
    };
    assert_eq!(only["RepoTags"], serde_json::json!([manifests::image()]));
    let config = only["Config"].as_str().expect("path");
    assert_eq!(format!("sha256:{}", hex(&files[config])), image.config);
    let layer = only["Layers"][0].as_str().expect("path");
    assert!(files.contains_key(layer), "{layer}");
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let digests: Vec<_> = (0..8).map(|_| image().digest()).collect();
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}
