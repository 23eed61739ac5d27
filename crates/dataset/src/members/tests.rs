use std::io::Cursor;

use proptest::prelude::*;
use tar::Builder;

use super::*;

impl Forward for Cursor<&[u8]> {
    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        self.set_position(self.position().saturating_add(bytes));
        Ok(())
    }
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    header
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) {
    tar.append_data(&mut header(EntryType::Regular, content.len() as u64), path, content).unwrap();
}

/// A member under another kind of header than the builder would write.
fn append_raw(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, content: &[u8]) {
    let mut header = header(kind, content.len() as u64);
    header.set_path(name).unwrap();
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn walk(tar: &[u8]) -> Result<Vec<Found>, String> {
    let mut members = Members::new(Cursor::new(tar), tar.len() as u64);
    let mut all = Vec::new();
    while let Some(found) = members.advance()? {
        all.push(found);
    }
    Ok(all)
}

fn content<'a>(tar: &'a [u8], found: &Found) -> &'a [u8] {
    &tar[found.offset as usize..][..found.length as usize]
}

fn pax(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let length = (1..).find(|length: &usize| length.to_string().len() + rest.len() == *length).unwrap();
    format!("{length}{rest}").into_bytes()
}

#[test]
fn members_are_found_with_their_bytes() {
    let mut tar = Builder::new(Vec::new());
    let long = format!("{}/b.jpg", "a".repeat(300));
    append(&mut tar, "a.jpg", b"first");
    append(&mut tar, "folder/in/folder/b.c.txt", &[7; 1500]);
    append(&mut tar, &long, b"long");
    append(&mut tar, "empty.txt", b"");
    let tar = tar.into_inner().unwrap();
    let found = walk(&tar).unwrap();
    let paths: Vec<_> = found.iter().map(|found| found.path.as_str()).collect();
    assert_eq!(paths, ["a.jpg", "folder/in/folder/b.c.txt", &long, "empty.txt"]);
    assert_eq!(content(&tar, &found[0]), b"first");
    assert_eq!(content(&tar, &found[1]), [7; 1500]);
    assert_eq!(content(&tar, &found[2]), b"long");
    assert!(found.iter().all(|found| found.plain));
}

#[test]
fn pax_records_name_and_size_the_next_member_only() {
    let long = format!("{}/é.jpg", "x".repeat(400));
    let records = [pax("mtime", "1.5"), pax("SCHILY.xattr.user.x", "a\nb=c"), pax("path", &long), pax("size", "3")];
    let mut tar = Builder::new(Vec::new());
    append_raw(&mut tar, EntryType::XGlobalHeader, "g", &pax("path", "global"));
    append_raw(&mut tar, EntryType::XHeader, "x", &records.concat());
    append_raw(&mut tar, EntryType::Regular, "short", b"abc");
    append(&mut tar, "next.txt", b"next");
    let tar = tar.into_inner().unwrap();
    let found = walk(&tar).unwrap();
    assert_eq!((found[0].path.as_str(), content(&tar, &found[0])), (long.as_str(), &b"abc"[..]));
    assert_eq!((found[1].path.as_str(), content(&tar, &found[1])), ("next.txt", &b"next"[..]));
}

#[test]
fn malformed_pax_records_are_errors() {
    for records in [&b"x"[..], b"5 a=b", b"999 path=a\n", b"6 ab\n\n", b"0 path=a\n", b"\xFF path=a\n", b"10 size=x\n"]
    {
        let mut tar = Builder::new(Vec::new());
        append_raw(&mut tar, EntryType::XHeader, "x", records);
        append(&mut tar, "a.txt", b"a");
        assert!(walk(&tar.into_inner().unwrap()).unwrap_err().contains("pax"), "{records:?}");
    }
}

#[test]
fn folders_links_and_sparse_files_are_not_plain() {
    let mut tar = Builder::new(Vec::new());
    append_raw(&mut tar, EntryType::Directory, "folder", b"");
    append_raw(&mut tar, EntryType::Symlink, "link.jpg", b"");
    append_raw(&mut tar, EntryType::GNUSparse, "holes.jpg", b"abc");
    append_raw(&mut tar, EntryType::XHeader, "x", &pax("GNU.sparse.major", "1"));
    append_raw(&mut tar, EntryType::Regular, "more_holes.jpg", b"abc");
    append(&mut tar, "a.txt", b"a");
    let found = walk(&tar.into_inner().unwrap()).unwrap();
    let plain: Vec<_> = found.iter().map(|found| found.plain).collect();
    assert_eq!(plain, [false, false, false, false, true]);
}

#[test]
fn the_further_maps_of_a_sparse_file_are_passed_over() {
    let mut header = header(EntryType::GNUSparse, 3);
    header.as_gnu_mut().unwrap().set_is_extended(true);
    header.set_cksum();
    let mut extension = [0; 512];
    extension[504] = 1;
    let mut next = Builder::new(Vec::new());
    append(&mut next, "a.txt", b"a");
    let mut data = [0; 512];
    data[..3].copy_from_slice(b"abc");
    let tar = [header.as_bytes(), &extension, &[0; 512], &data, &next.into_inner().unwrap()[..]].concat();
    let found = walk(&tar).unwrap();
    assert_eq!((content(&tar, &found[0]), found[1].path.as_str()), (&b"abc"[..], "a.txt"));
}

#[test]
fn an_empty_tar_has_no_members() {
    assert_eq!(walk(&Builder::new(Vec::new()).into_inner().unwrap()).unwrap(), []);
}

#[test]
fn a_tar_cut_short_anywhere_is_an_error() {
    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "a.jpg", &[1; 700]);
    append(&mut tar, &"n".repeat(200), b"b");
    let tar = tar.into_inner().unwrap();
    walk(&tar).unwrap();
    // One block of the two at the end is enough.
    for length in 0..tar.len() - 512 {
        assert!(walk(&tar[..length]).unwrap_err().contains("truncated?"), "{length}");
    }
}

#[test]
fn members_that_claim_too_much_are_errors() {
    for (kind, size) in [
        (EntryType::Regular, u64::MAX >> 1),
        (EntryType::Regular, u64::MAX),
        (EntryType::Regular, 2000),
        (EntryType::GNULongName, 1 << 40),
        (EntryType::XHeader, 1 << 40),
    ] {
        let tar = [&header(kind, size).as_bytes()[..], &[0; 1024]].concat();
        assert!(walk(&tar).unwrap_err().contains("truncated?"), "{kind:?} {size}");
    }
}

#[test]
fn long_records_are_not_read_into_memory() {
    let mut tar = Builder::new(Vec::new());
    append_raw(&mut tar, EntryType::GNULongName, "name", &vec![b'a'; (MAX_RECORD_LENGTH + 1) as usize]);
    assert!(walk(&tar.into_inner().unwrap()).unwrap_err().contains("record of 1048577 bytes"));
}

#[test]
fn what_is_no_tar_is_named_by_its_place() {
    assert!(walk(&[b'x'; 2048]).unwrap_err().contains("no tar header at byte 0"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = walk(&bytes);
    }

    #[test]
    fn damaged_tars_never_panic_and_never_lead_outside(
        damage in proptest::collection::vec((0usize..4096, any::<u8>()), 1..8), mend in any::<bool>(),
    ) {
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, &"n".repeat(150), b"abc");
        append_raw(&mut tar, EntryType::XHeader, "x", &pax("path", "b.jpg"));
        append(&mut tar, "c", &[9; 600]);
        let mut tar = tar.into_inner().unwrap();
        for (place, value) in damage {
            let place = place % tar.len();
            tar[place] = value;
        }
        if mend {
            for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        for found in walk(&tar).unwrap_or_default() {
            prop_assert!(found.offset.checked_add(found.length).unwrap() <= tar.len() as u64);
        }
    }
}
