//! Tests that the documents stay true: links lead somewhere, every table is described as it is, and what
//! operators are to apply is what Kubernetes takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use policy_agent::agent::Health;
use policy_common::map;
use policy_common::verdict::{Reason, Verdict};
use serde::de::DeserializeOwned;

/// A document and its text.
struct Document {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
}

fn read(path: PathBuf) -> Document {
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Document { path, text }
}

/// README.md and everything in docs/.
fn documents() -> Vec<Document> {
    let mut documents = vec![read(root().join("README.md"))];
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("docs") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(read(path));
            }
        }
    }
    documents
}

impl Document {
    /// The lines outside of code blocks.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut code = false;
        self.text.lines().filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            code ^= fence;
            !code && !fence
        })
    }

    /// Targets of `[text](target)`.
    fn links(&self) -> Vec<&str> {
        let targets = self.prose().flat_map(|line| line.split("](").skip(1));
        targets
            .map(|rest| rest.split_once(')').expect("a closing parenthesis").0)
            .collect()
    }

    fn headings(&self) -> impl Iterator<Item = &str> {
        let lines = self.prose().filter(|line| line.starts_with('#'));
        lines.map(|line| line.trim_start_matches('#').trim())
    }

    /// What headings are linked to by, as GitHub makes it.
    fn anchors(&self) -> BTreeSet<String> {
        let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        self.headings()
            .map(|heading| {
                let text: String = heading.to_lowercase().chars().filter(kept).collect();
                text.replace(' ', "-")
            })
            .collect()
    }

    /// Blocks of YAML.
    fn yaml(&self) -> impl Iterator<Item = &str> {
        let blocks = self.text.split("```yaml\n").skip(1);
        blocks.map(|rest| rest.split_once("```").expect("the block's end").0)
    }

    /// What is wrong with a link, if anything.
    fn fault(&self, link: &str) -> Option<String> {
        if link.starts_with("https://") || link.starts_with("http://") {
            return None;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = self.path.parent()?.join(file);
        if !target.exists() {
            return Some(format!("{}: {link} does not exist", self.path.display()));
        }
        let known = match (file, anchor) {
            (_, "") => true,
            ("", anchor) => self.anchors().contains(anchor),
            (_, anchor) => read(target).anchors().contains(anchor),
        };
        (!known).then(|| format!("{}: {link} has no such heading", self.path.display()))
    }
}

fn maps() -> Document {
    read(root().join("docs/reference/maps.md"))
}

#[test]
fn relative_links_lead_somewhere() {
    let documents = documents();
    let mut faults = Vec::new();
    let mut links = 0;
    for document in &documents {
        for link in document.links() {
            links += 1;
            faults.extend(document.fault(link));
        }
    }
    assert!(documents.len() > 5 && links > 20, "{links} links found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn broken_links_are_found() {
    let document = Document {
        path: root().join("docs/x.md"),
        text: "# A b, `c_d`\n[a](#a-b-c_d) [b](#b) [c](README.md) [d](no.md) [e](README.md#no)\n```\n[f](no)\n```\n"
            .to_owned(),
    };
    let links = document.links();
    assert_eq!(links.len(), 5);
    let faulty = links
        .into_iter()
        .filter(|link| document.fault(link).is_some());
    assert_eq!(faulty.collect::<Vec<_>>(), ["#b", "no.md", "README.md#no"]);
}

#[test]
fn the_index_names_every_document() {
    let docs = root().join("docs");
    let index = read(docs.join("README.md"));
    let named: BTreeSet<PathBuf> = index
        .links()
        .into_iter()
        .map(|link| docs.join(link))
        .collect();
    for document in documents().iter().skip(1) {
        assert!(
            document.path == index.path || named.contains(&document.path),
            "docs/README.md does not name {}",
            document.path.display()
        );
    }
}

#[test]
fn every_table_has_a_section_with_a_dump_and_its_size() {
    let maps = maps();
    for spec in map::ALL {
        let name = spec.name;
        let (_, section) = maps
            .text
            .split_once(&format!("\n## {name}\n"))
            .unwrap_or_else(|| panic!("no section {name}"));
        let section = section.split("\n## ").next().expect("the section");
        let pin = format!("pinned /sys/fs/bpf/portcullis/{name}");
        assert!(section.contains(&pin), "{name}: no command that shows it");
        let row = maps
            .prose()
            .find(|line| line.starts_with(&format!("| [{name}](#{name}) |")));
        let rows = row.and_then(|row| row.trim_end_matches(" |").rsplit("| ").next());
        let rows = rows.unwrap_or_else(|| panic!("{name} is not in the list"));
        let documented = match rows.strip_suffix(" MiB") {
            Some(size) => size.parse::<u32>().map(|size| size << 20),
            None => rows.replace(',', "").parse(),
        };
        assert_eq!(documented, Ok(spec.capacity), "{name}");
    }
}

#[test]
fn every_reason_is_in_the_table_of_counters() {
    let maps = maps();
    for reason in Reason::ALL {
        let verdict = match reason.verdict() {
            Verdict::Pass => "pass",
            Verdict::Drop => "drop",
        };
        let row = format!("| {} | `{}` | {verdict} |", *reason as u8, reason.as_str());
        assert!(maps.prose().any(|line| line == row), "{row}");
    }
}

#[test]
fn every_table_is_in_the_architecture() {
    let architecture = read(root().join("docs/ARCHITECTURE.md"));
    let mut named = BTreeSet::new();
    for row in architecture.prose().filter(|line| line.starts_with("| `")) {
        let names = row.split('|').nth(1).expect("a first column");
        for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
            // `flows_v4/6` is two.
            if let Some(both) = name.strip_suffix("4/6") {
                named.extend([format!("{both}4"), format!("{both}6")]);
            } else {
                named.insert(name.to_owned());
            }
        }
    }
    let tables: BTreeSet<_> = map::ALL.iter().map(|spec| spec.name.to_owned()).collect();
    assert_eq!(named, tables);
}

#[test]
fn samples_of_status_have_every_condition() {
    let conditions = Health::starting().conditions;
    for path in ["docs/install/hosted.md", "docs/reference/policyctl.md"] {
        let document = read(root().join(path));
        let (_, sample) = document
            .text
            .split_once("\nCONDITION ")
            .unwrap_or_else(|| panic!("{path}: no conditions"));
        let (sample, _) = sample.split_once("\n\n").expect("a section after it");
        let shown = sample.lines().skip(1);
        let shown = shown.filter_map(|line| line.split_whitespace().next());
        // Only where the datastore is the API.
        let shown: Vec<_> = shown.filter(|name| *name != "NodeKnown").collect();
        let known: Vec<_> = conditions.iter().map(|condition| &condition.name).collect();
        assert_eq!(shown, known, "{path}");
    }
}

#[test]
fn objects_to_apply_are_what_kubernetes_takes() {
    let manifest =
        fs::read_to_string(root().join("manifests/portcullis.yaml")).expect("the manifest");
    let mut kinds = BTreeSet::new();
    for document in documents() {
        for yaml in document.yaml() {
            let place = document.path.display();
            let kind = yaml.lines().find_map(|line| line.strip_prefix("kind: "));
            match kind {
                Some("NetworkPolicy") => drop(strictly::<NetworkPolicy>(yaml)),
                Some("DaemonSet") => {
                    let pod = strictly::<DaemonSet>(yaml)
                        .spec
                        .expect("a spec")
                        .template
                        .spec;
                    let containers = pod.expect("a pod").init_containers.expect("what it is for");
                    let image = containers[0].image.clone().expect("an image");
                    assert!(
                        manifest.contains(&image),
                        "{place}: {image} is not the manifest's"
                    );
                }
                Some(kind) => panic!("{place}: a {kind} that this test does not know"),
                // Of other programs.
                None => continue,
            }
            kinds.extend(kind.map(str::to_owned));
        }
    }
    assert_eq!(kinds.len(), 2, "{kinds:?}");
}

/// Parses YAML and takes no field that the type does not have.
fn strictly<T: DeserializeOwned>(yaml: &str) -> T {
    let mut unknown = Vec::new();
    let value: serde_json::Value = serde_saphyr::from_str(yaml).expect("YAML");
    let object = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()));
    assert!(unknown.is_empty(), "unknown fields: {unknown:?}");
    object.expect("an object of its kind")
}
