//! Tar archives that depend on nothing but the files in them and one time.

use std::collections::BTreeSet;
use std::io::Write as _;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::content::File;

/// Writes `files` in the order of their paths, each directory before what is in it. `time` in seconds
/// since 1970.
pub(super) fn tar(files: &[File], time: u64) -> Result<Vec<u8>> {
    let mut paths: Vec<(String, Option<&File>)> = directories(files)
        .into_iter()
        .map(|path| (path, None))
        .chain(files.iter().map(|file| (file.path.clone(), Some(file))))
        .collect();
    paths.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut builder = Builder::new(Vec::new());
    for (path, file) in paths {
        let mut header = Header::new_ustar();
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        match file {
            Some(file) => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(file.mode);
                header.set_size(file.data.len() as u64);
                builder.append_data(&mut header, path, &file.data[..])?;
            }
            None => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                builder.append_data(&mut header, path, &[][..])?;
            }
        }
    }
    Ok(builder.into_inner()?)
}

/// Every directory of `files`, with a slash at its end.
fn directories(files: &[File]) -> BTreeSet<String> {
    files
        .iter()
        .flat_map(|file| {
            let slashes = file.path.match_indices('/');
            slashes.map(|(at, _)| file.path[..=at].to_owned())
        })
        .collect()
}

/// Compresses; the header names no file, time or system.
pub(super) fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::{File, gzip, tar};

    fn file(path: &str, mode: u32) -> File {
        File {
            path: path.to_owned(),
            mode,
            data: path.as_bytes().to_vec(),
        }
    }

    #[test]
    fn entries_are_sorted_and_belong_to_nobody() {
        let archive = tar(&[file("usr/b/x", 0o755), file("usr/a", 0o644)], 7).expect("tar");
        let mut reader = tar::Archive::new(&archive[..]);
        let found: Vec<_> = reader
            .entries()
            .expect("entries")
            .map(|entry| {
                let mut entry = entry.expect("entry");
                let header = entry.header().clone();
                assert_eq!(header.mtime().expect("time"), 7);
                assert_eq!(
                    (header.uid().expect("uid"), header.gid().expect("gid")),
                    (0, 0)
                );
                assert_eq!(header.username_bytes(), Some(&b""[..]));
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                let path = entry.path().expect("path").display().to_string();
                (path, header.mode().expect("mode"), text)
            })
            .collect();
        let row = |path: &str, mode, text: &str| (path.to_owned(), mode, text.to_owned());
        assert_eq!(
            found,
            [
                row("usr/", 0o755, ""),
                row("usr/a", 0o644, "usr/a"),
                row("usr/b/", 0o755, ""),
                row("usr/b/x", 0o755, "usr/b/x"),
            ]
        );
    }

    #[test]
    fn compression_is_undone_by_gunzip_and_knows_no_time() {
        let compressed = gzip(b"the same, the same, the same").expect("gzip");
        // RFC 1952: magic, deflate, no flags (so no name), no time.
        assert_eq!(compressed[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
        let mut text = String::new();
        flate2::read::GzDecoder::new(&compressed[..])
            .read_to_string(&mut text)
            .expect("gunzip");
        assert_eq!(text, "the same, the same, the same");
    }
}
