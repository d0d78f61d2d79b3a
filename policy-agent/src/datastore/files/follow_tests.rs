//! The datastore on a real directory with real inotify. Nothing here sleeps: an absence is shown by a
//! sync, whose answer stands behind every change that there was.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture {
    directory: tempfile::TempDir,
    store: Datastore,
    token: u64,
}

impl Fixture {
    async fn start(files: &[(&str, &str)]) -> (Self, Vec<String>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("write");
        }
        let store = start(directory.path()).expect("start");
        let mut fixture = Self {
            directory,
            store,
            token: 0,
        };
        let mut changes = Vec::new();
        loop {
            match fixture.next().await {
                Update::Changes { changes: more, .. } => changes.extend(words(more)),
                Update::Loaded => return (fixture, changes),
                Update::Synced(_) => panic!("nobody asked for a sync"),
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("write");
    }

    async fn next(&mut self) -> Update {
        timeout(PATIENCE, self.store.updates.recv())
            .await
            .expect("an update in time")
            .expect("the datastore lives")
    }

    /// The next changes, which come by themselves.
    async fn followed(&mut self) -> Vec<String> {
        match self.next().await {
            Update::Changes { changes, .. } => words(changes),
            other => panic!("{other:?}"),
        }
    }

    /// What a sync brings before its answer.
    async fn synced(&mut self) -> Vec<String> {
        self.token += 1;
        let token = SyncToken(self.token);
        self.store
            .sync
            .send(token)
            .await
            .expect("the datastore lives");
        let mut changes = Vec::new();
        loop {
            match self.next().await {
                Update::Changes { changes: more, .. } => changes.extend(words(more)),
                Update::Synced(answered) => {
                    assert_eq!(answered, token);
                    return changes;
                }
                Update::Loaded => panic!("loaded twice"),
            }
        }
    }

    fn problems(&self) -> Vec<String> {
        let report = self.store.report.borrow();
        report.problems.iter().map(ToString::to_string).collect()
    }
}

fn words(changes: Vec<ObjectChange>) -> Vec<String> {
    let mut words: Vec<_> = changes
        .into_iter()
        .map(|change| match change {
            ObjectChange::Upsert(object) => format!("+{}{}", object.key(), label(&object)),
            ObjectChange::Gone(key) => format!("-{key}"),
        })
        .collect();
    words.sort();
    words
}

fn label(object: &crate::datastore::Object) -> String {
    match object {
        crate::datastore::Object::Namespace(namespace) => namespace
            .labels
            .get("l")
            .map(|value| format!(" {value}"))
            .unwrap_or_default(),
        _ => String::new(),
    }
}

fn namespace(name: &str, label: &str) -> String {
    format!(
        "kind: Namespace\napiVersion: v1\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\n---\n"
    )
}

#[tokio::test]
async fn create_edit_rename_delete() {
    let (mut store, loaded) = Fixture::start(&[
        ("a.yaml", &(namespace("one", "x") + &namespace("two", "x"))),
        (
            "b.json",
            r#"{"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "three"}}"#,
        ),
        (".hidden.yaml", &namespace("hidden", "x")),
        ("a.yaml~", &namespace("backup", "x")),
        ("#a.yaml", &namespace("autosave", "x")),
        ("README.md", "not yaml"),
    ])
    .await;
    assert_eq!(
        loaded,
        ["+Namespace one x", "+Namespace three", "+Namespace two x"]
    );

    store.write("c.yml", &namespace("four", "x"));
    assert_eq!(store.followed().await, ["+Namespace four x"]);

    store.write("a.yaml", &(namespace("one", "y") + &namespace("two", "x")));
    assert_eq!(store.followed().await, ["+Namespace one y"]);

    store.write(".a.yaml.tmp", &namespace("one", "z"));
    fs::rename(store.path(".a.yaml.tmp"), store.path("a.yaml")).expect("rename");
    assert_eq!(
        store.followed().await,
        ["+Namespace one z", "-Namespace two"]
    );

    fs::rename(store.path("c.yml"), store.path("d.yaml")).expect("rename");
    assert_eq!(
        store.synced().await,
        [""; 0],
        "the object moved, and was never gone"
    );

    fs::remove_file(store.path("d.yaml")).expect("remove");
    assert_eq!(store.followed().await, ["-Namespace four"]);
    assert_eq!(store.problems(), [""; 0]);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_alone() {
    let (mut store, _) =
        Fixture::start(&[("a.yaml", &(namespace("one", "x") + &namespace("two", "x")))]).await;
    let mut file = File::create(store.path("a.yaml")).expect("truncate");
    assert_eq!(store.synced().await, [""; 0], "truncated, not closed");
    file.write_all(namespace("one", "y").as_bytes())
        .expect("write");
    assert_eq!(store.synced().await, [""; 0], "half written, not closed");
    file.write_all(namespace("two", "y").as_bytes())
        .expect("write");
    drop(file);
    assert_eq!(
        store.followed().await,
        ["+Namespace one y", "+Namespace two y"]
    );

    let mut new = File::create(store.path("b.yaml")).expect("create");
    new.write_all(namespace("three", "x").as_bytes())
        .expect("write");
    assert_eq!(store.synced().await, [""; 0], "new, not closed");
    drop(new);
    assert_eq!(store.synced().await, ["+Namespace three x"]);
}

#[tokio::test]
async fn a_mistake_keeps_the_last_good_state_of_its_file_only() {
    let (mut store, _) = Fixture::start(&[
        ("a.yaml", &(namespace("one", "x") + &namespace("two", "x"))),
        ("b.yaml", &namespace("three", "x")),
    ])
    .await;
    store.write("a.yaml", &(namespace("one", "y") + "kind: Nonsense\n"));
    store.write("b.yaml", &namespace("three", "y"));
    assert_eq!(store.synced().await, ["+Namespace three y"]);
    assert_eq!(
        store.problems(),
        [
            "a.yaml:5: kind: unknown kind \"Nonsense\"; the choices are Namespace, Pod, NetworkPolicy, Service, and \
          lists of them"
        ]
    );
    store.write("a.yaml", &namespace("one", "y"));
    assert_eq!(store.synced().await, ["+Namespace one y", "-Namespace two"]);
    assert_eq!(store.problems(), [""; 0]);

    store.write("c.yaml", "kind: [");
    assert_eq!(store.synced().await, [""; 0]);
    assert_eq!(store.problems().len(), 1);
    fs::remove_file(store.path("c.yaml")).expect("remove");
    assert_eq!(store.synced().await, [""; 0]);
    assert_eq!(store.problems(), [""; 0]);
}

#[tokio::test]
async fn the_first_file_by_name_wins() {
    let (mut store, loaded) = Fixture::start(&[
        ("b.yaml", &namespace("one", "from-b")),
        (
            "c.yaml",
            &(namespace("two", "x") + &namespace("one", "from-c")),
        ),
    ])
    .await;
    assert_eq!(loaded, ["+Namespace one from-b", "+Namespace two x"]);
    assert_eq!(
        store.problems(),
        ["c.yaml:5: Namespace one: also in b.yaml:1, which counts"]
    );
    store.write("a.yaml", &namespace("one", "from-a"));
    assert_eq!(store.followed().await, ["+Namespace one from-a"]);
    fs::remove_file(store.path("a.yaml")).expect("remove");
    assert_eq!(store.followed().await, ["+Namespace one from-b"]);
    fs::remove_file(store.path("b.yaml")).expect("remove");
    assert_eq!(store.followed().await, ["+Namespace one from-c"]);
    assert_eq!(store.problems(), [""; 0]);
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_its_state_and_may_come_back() {
    let (mut store, _) = Fixture::start(&[("a.yaml", &namespace("one", "x"))]).await;
    let aside = tempfile::tempdir().expect("temporary directory");
    let elsewhere = aside.path().join("moved");
    fs::rename(store.directory.path(), &elsewhere).expect("move");
    assert_eq!(store.synced().await, [""; 0]);
    let problems = store.problems();
    assert!(
        problems.len() == 1 && problems[0].contains("the last good state stays in force"),
        "{problems:?}"
    );
    fs::create_dir(store.directory.path()).expect("create");
    store.write("a.yaml", &namespace("one", "y"));
    assert_eq!(store.synced().await, ["+Namespace one y"]);
    assert_eq!(store.problems(), [""; 0]);
    // Followed again, not only looked at for the sync.
    store.write("a.yaml", &namespace("one", "z"));
    assert_eq!(store.followed().await, ["+Namespace one z"]);
}

#[tokio::test]
async fn a_config_map_volume_is_swapped_as_a_whole() {
    use std::os::unix::fs::symlink;
    let (mut store, _) = Fixture::start(&[]).await;
    let version = |name: &str, label: &str| {
        let directory = store.path(name);
        fs::create_dir(&directory).expect("create");
        fs::write(directory.join("a.yaml"), namespace("one", label)).expect("write");
    };
    version("..1", "x");
    symlink("..1", store.path("..data")).expect("symlink");
    symlink("..data/a.yaml", store.path("a.yaml")).expect("symlink");
    assert_eq!(store.synced().await, ["+Namespace one x"]);
    let version = |name: &str, label: &str| {
        let directory = store.path(name);
        fs::create_dir(&directory).expect("create");
        fs::write(directory.join("a.yaml"), namespace("one", label)).expect("write");
    };
    version("..2", "y");
    symlink("..2", store.path("..data_tmp")).expect("symlink");
    fs::rename(store.path("..data_tmp"), store.path("..data")).expect("rename");
    assert_eq!(store.followed().await, ["+Namespace one y"]);
}

#[tokio::test]
async fn pods_without_a_creation_time_are_ordered_by_arrival() {
    let pod = |name: &str, label: &str| {
        format!("kind: Pod\napiVersion: v1\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\n")
    };
    let created = |update: Update| match update {
        Update::Changes { changes, .. } => match changes.as_slice() {
            [
                ObjectChange::Upsert(crate::datastore::Object::Pod(
                    crate::datastore::convert::PodObject::Pod { pod, .. },
                )),
            ] => pod.created,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let (mut store, _) = Fixture::start(&[]).await;
    store.write("z.yaml", &pod("old", "x"));
    let old = created(store.next().await);
    store.write("a.yaml", &pod("new", "x"));
    let new = created(store.next().await);
    assert!(old < new, "{old} {new}");
    store.write("z.yaml", &pod("old", "y"));
    assert_eq!(created(store.next().await), old, "an edit is no arrival");
}
