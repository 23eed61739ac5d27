use std::io::Cursor;

use proptest::prelude::*;
use tar::Builder;

use super::*;

impl ForwardReader for Cursor<&[u8]> {
    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        self.set_position(self.position().saturating_add(bytes));
        Ok(())
    }
}

fn header(entry_type: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_size(size);
    header.set_cksum();
    header
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) {
    tar.append_data(&mut header(EntryType::Regular, content.len() as u64), path, content).unwrap();
}

/// Appends a member with a header type that the builder does not write.
fn append_raw(tar: &mut Builder<Vec<u8>>, entry_type: EntryType, name: &str, content: &[u8]) {
    let mut header = header(entry_type, content.len() as u64);
    header.set_path(name).unwrap();
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn read_members(tar: &[u8]) -> Result<Vec<MemberHeader>, String> {
    let mut reader = TarReader::new(Cursor::new(tar), tar.len() as u64);
    let mut members = Vec::new();
    while let Some(member) = reader.next_member().map_err(|error| error.to_string())? {
        members.push(member);
    }
    Ok(members)
}

fn content<'a>(tar: &'a [u8], member: &MemberHeader) -> &'a [u8] {
    &tar[member.offset as usize..][..member.length as usize]
}

fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let length = (1..).find(|length: &usize| length.to_string().len() + rest.len() == *length).unwrap();
    format!("{length}{rest}").into_bytes()
}

#[test]
fn members_have_paths_and_content() {
    let mut tar = Builder::new(Vec::new());
    let long = format!("{}/b.jpg", "a".repeat(300));
    append(&mut tar, "a.jpg", b"first");
    append(&mut tar, "folder/in/folder/b.c.txt", &[7; 1500]);
    append(&mut tar, &long, b"long");
    append(&mut tar, "empty.txt", b"");
    let tar = tar.into_inner().unwrap();
    let members = read_members(&tar).unwrap();
    let paths: Vec<_> = members.iter().map(|member| member.path.as_str()).collect();
    assert_eq!(paths, ["a.jpg", "folder/in/folder/b.c.txt", &long, "empty.txt"]);
    assert_eq!(content(&tar, &members[0]), b"first");
    assert_eq!(content(&tar, &members[1]), [7; 1500]);
    assert_eq!(content(&tar, &members[2]), b"long");
    assert!(members.iter().all(|member| member.is_plain_file));
}

#[test]
fn pax_records_set_path_and_size_of_the_next_member_only() {
    let long = format!("{}/é.jpg", "x".repeat(400));
    let records = [
        pax_record("mtime", "1.5"),
        pax_record("SCHILY.xattr.user.x", "a\nb=c"),
        pax_record("path", &long),
        pax_record("size", "3"),
    ];
    let mut tar = Builder::new(Vec::new());
    append_raw(&mut tar, EntryType::XGlobalHeader, "g", &pax_record("path", "global"));
    append_raw(&mut tar, EntryType::XHeader, "x", &records.concat());
    append_raw(&mut tar, EntryType::Regular, "short", b"abc");
    append(&mut tar, "next.txt", b"next");
    let tar = tar.into_inner().unwrap();
    let members = read_members(&tar).unwrap();
    assert_eq!((members[0].path.as_str(), content(&tar, &members[0])), (long.as_str(), &b"abc"[..]));
    assert_eq!((members[1].path.as_str(), content(&tar, &members[1])), ("next.txt", &b"next"[..]));
}

#[test]
fn malformed_pax_records_are_errors() {
    for records in [&b"x"[..], b"5 a=b", b"999 path=a\n", b"6 ab\n\n", b"0 path=a\n", b"\xFF path=a\n", b"10 size=x\n"]
    {
        let mut tar = Builder::new(Vec::new());
        append_raw(&mut tar, EntryType::XHeader, "x", records);
        append(&mut tar, "a.txt", b"a");
        assert!(read_members(&tar.into_inner().unwrap()).unwrap_err().contains("pax"), "{records:?}");
    }
}

#[test]
fn directories_links_and_sparse_files_are_not_plain_files() {
    let mut tar = Builder::new(Vec::new());
    append_raw(&mut tar, EntryType::Directory, "folder", b"");
    append_raw(&mut tar, EntryType::Symlink, "link.jpg", b"");
    append_raw(&mut tar, EntryType::GNUSparse, "holes.jpg", b"abc");
    append_raw(&mut tar, EntryType::XHeader, "x", &pax_record("GNU.sparse.major", "1"));
    append_raw(&mut tar, EntryType::Regular, "more_holes.jpg", b"abc");
    append(&mut tar, "a.txt", b"a");
    let members = read_members(&tar.into_inner().unwrap()).unwrap();
    let are_plain: Vec<_> = members.iter().map(|member| member.is_plain_file).collect();
    assert_eq!(are_plain, [false, false, false, false, true]);
}

#[test]
fn extension_headers_of_a_sparse_file_are_skipped() {
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
    let members = read_members(&tar).unwrap();
    assert_eq!((content(&tar, &members[0]), members[1].path.as_str()), (&b"abc"[..], "a.txt"));
}

#[test]
fn an_empty_tar_has_no_members() {
    assert_eq!(read_members(&Builder::new(Vec::new()).into_inner().unwrap()).unwrap(), []);
}

#[test]
fn a_tar_truncated_anywhere_is_an_error() {
    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "a.jpg", &[1; 700]);
    append(&mut tar, &"n".repeat(200), b"b");
    let tar = tar.into_inner().unwrap();
    read_members(&tar).unwrap();
    // One of the two zero blocks at the end is enough.
    for length in 0..tar.len() - 512 {
        assert!(read_members(&tar[..length]).unwrap_err().contains("truncated?"), "{length}");
    }
}

#[test]
fn members_that_end_beyond_the_file_are_errors() {
    for (entry_type, size) in [
        (EntryType::Regular, u64::MAX >> 1),
        (EntryType::Regular, u64::MAX),
        (EntryType::Regular, 2000),
        (EntryType::GNULongName, 1 << 40),
        (EntryType::XHeader, 1 << 40),
    ] {
        let tar = [&header(entry_type, size).as_bytes()[..], &[0; 1024]].concat();
        assert!(read_members(&tar).unwrap_err().contains("truncated?"), "{entry_type:?} {size}");
    }
}

#[test]
fn extensions_above_the_limit_are_errors() {
    let mut tar = Builder::new(Vec::new());
    append_raw(&mut tar, EntryType::GNULongName, "name", &vec![b'a'; (MAX_EXTENSION_BYTES + 1) as usize]);
    assert!(read_members(&tar.into_inner().unwrap()).unwrap_err().contains("extended header of 1048577 bytes"));
}

#[test]
fn a_file_without_tar_header_is_an_error_with_position() {
    assert!(read_members(&[b'x'; 2048]).unwrap_err().contains("no tar header at byte 0"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read_members(&bytes);
    }

    #[test]
    fn members_of_damaged_tars_end_within_the_file(
        damage in proptest::collection::vec((0usize..4096, any::<u8>()), 1..8), fixes_checksums in any::<bool>(),
    ) {
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, &"n".repeat(150), b"abc");
        append_raw(&mut tar, EntryType::XHeader, "x", &pax_record("path", "b.jpg"));
        append(&mut tar, "c", &[9; 600]);
        let mut tar = tar.into_inner().unwrap();
        for (offset, value) in damage {
            let offset = offset % tar.len();
            tar[offset] = value;
        }
        if fixes_checksums {
            for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        for member in read_members(&tar).unwrap_or_default() {
            prop_assert!(member.offset.checked_add(member.length).unwrap() <= tar.len() as u64);
        }
    }
}
