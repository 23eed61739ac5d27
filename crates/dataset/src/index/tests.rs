use image::{ImageFormat, RgbImage};
use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;
use crate::store::Version;

fn png(width: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(width, 2).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (path, content) in members {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn version(tar: &[u8]) -> Version {
    Version::new(tar.len() as u64, "tag")
}

fn build(members: &[(&str, &[u8])]) -> Vec<Sample> {
    let tar = tar(members);
    TarIndex::build(Cursor::new(&tar[..]), &version(&tar)).unwrap().samples
}

#[test]
fn members_are_grouped_by_key() {
    let (image, json) = (png(3), br#"["Two dogs.", " A dog \n"]"#);
    let members: [(&str, &[u8]); 12] = [
        ("train/0001.jpg", &image),
        ("train/0001.txt", b" A cat.\n"),
        ("a.b/0002.JPEG", &image),
        ("a.b/0002.json", json),
        ("0003.txt", b"ignored beside json"),
        ("0003.json", br#"{"captions": ["x"], "other": {"y": [1]}}"#),
        ("0003.png", &image),
        ("0003.seg.png", b"another extension"),
        ("0004.webp", &image),
        ("0004.json", br#"{"width": 7}"#),
        ("0004.txt", b"metadata has no captions"),
        ("readme.md", b"of no use"),
    ];
    let samples = build(&members);
    let keys: Vec<_> = samples.iter().map(|sample| sample.key.as_str()).collect();
    assert_eq!(keys, ["train/0001", "a.b/0002", "0003", "0004"]);
    let captions: Vec<_> = samples.iter().map(|sample| sample.captions.join("|")).collect();
    assert_eq!(captions, ["A cat.", "Two dogs.|A dog", "x", "metadata has no captions"]);
    let tar = tar(&members);
    for Sample { image: extent, problem, .. } in samples {
        let Extent { offset, length } = extent.unwrap();
        assert_eq!((&tar[offset as usize..][..length as usize], problem), (&image[..], None));
    }
}

#[test]
fn byte_order_marks_are_skipped() {
    let image = png(3);
    let samples = build(&[
        ("1.jpg", &image),
        ("1.txt", "\u{feff}A cat.\r\n".as_bytes()),
        ("2.jpg", &image),
        ("2.json", "\u{feff}{\"captions\": [\"Two dogs.\"]}".as_bytes()),
    ]);
    let captions: Vec<_> = samples.iter().map(|sample| sample.captions.join("|")).collect();
    assert_eq!(captions, ["A cat.", "Two dogs."]);
}

#[test]
fn keys_do_not_begin_with_dot_slash() {
    let image = png(3);
    let samples = build(&[("./a.png", &image), ("./a.txt", b"x"), ("./b/c.png", &image), ("b/c.txt", b"y")]);
    let samples: Vec<_> = samples.iter().map(|sample| (sample.key.as_str(), sample.captions.join("|"))).collect();
    assert_eq!(samples, [("a", "x".into()), ("b/c", "y".into())]);
}

#[test]
fn hidden_files_are_ignored() {
    assert_eq!(build(&[("._a.jpg", b"x"), (".DS_Store", b"x"), ("folder/.b.txt", b"x"), ("noextension", b"x")]), []);
}

#[test]
fn members_with_unknown_extensions_are_counted_by_extension() {
    let image = png(3);
    let mut members: Vec<(String, &[u8])> = vec![
        ("train/photo.0.jpg".into(), &image),
        ("train/photo.1.JPG".into(), &image),
        ("photo.2.Jpg".into(), &image),
        ("photo.0.jpg".into(), &image),
        ("README".into(), b"x"),
        (".hidden.cls".into(), b"x"),
    ];
    members.extend((0..40).map(|i| (format!("b.x{i}"), &b"x"[..])));
    let members: Vec<(&str, &[u8])> = members.iter().map(|(path, content)| (path.as_str(), *content)).collect();
    let tar = tar(&members);
    let index = TarIndex::build(Cursor::new(&tar[..]), &version(&tar)).unwrap();
    assert_eq!(index.unknown["0.jpg"], UnknownMembers { members: 2, first: "train/photo.0.jpg".into() });
    assert_eq!((index.unknown["1.jpg"].members, index.unknown[""].members), (1, 1));
    assert_eq!((index.unknown.len(), index.unknown[OTHERS].members), (MAX_UNKNOWN_EXTENSIONS + 1, 28));
    assert_eq!(TarIndex::parse(&index.to_json().unwrap(), &version(&tar)), Ok(Some(index)));
}

#[test]
fn image_ids_are_read_from_json() {
    let image = png(3);
    let id = |json: &str| build(&[("a.png", &image), ("a.json", json.as_bytes())])[0].id;
    for (json, expected) in [
        (r#"{"captions": ["x"], "image_id": 7, "id": 8}"#, Some(7)),
        (r#"{"captions": ["x"], "cocoid": 9}"#, Some(9)),
        (r#"{"captions": ["x"], "id": "000379613"}"#, Some(379_613)),
        (r#"{"id": {"a": 1}, "image_id": "x"}"#, None),
        (r#"{"image_id": -3, "id": 4}"#, Some(4)),
        (r#"["x"]"#, None),
    ] {
        assert_eq!(id(json), expected, "{json}");
    }
}

#[test]
fn each_line_of_a_text_is_a_caption() {
    let image = png(3);
    let captions = |text: &str| build(&[("a.png", &image), ("a.txt", text.as_bytes())])[0].captions.join("|");
    assert_eq!(captions("A cat.\n"), "A cat.");
    assert_eq!(captions("A cat.\r\n\r\n  One cat \nThe cat"), "A cat.|One cat|The cat");
    assert_eq!(captions(" \n\n"), "");
}

#[test]
fn captions_in_json_have_several_forms() {
    let image = png(3);
    let sample = |json: &str| {
        let mut samples = build(&[("a.png", &image), ("a.txt", b"of the text"), ("a.json", json.as_bytes())]);
        samples.remove(0)
    };
    for (json, expected) in [
        (r#"["x", "y"]"#, "x|y"),
        (r#""x""#, "x"),
        (r#"{"captions": ["x", " ", "y"]}"#, "x|y"),
        (r#"{"captions": "x", "caption": "y", "text": "z"}"#, "x"),
        (r#"{"caption": "x", "url": "u"}"#, "x"),
        (r#"{"caption": ["x", "y"]}"#, "x|y"),
        (r#"{"captions": null, "text": "x"}"#, "x"),
        (r#"{"captions": [], "text": ["x"]}"#, "x"),
        (r#"{"captions": {"en": "x"}, "text": 7}"#, "of the text"),
        (r#"{"width": 7}"#, "of the text"),
    ] {
        let Sample { captions, json_keys, problem, .. } = sample(json);
        assert_eq!((captions.join("|").as_str(), json_keys.len(), problem), (expected, 0, None), "{json}");
    }
    let problem = |json: &str| sample(json).problem.unwrap_or_default();
    for json in ["7", "[1]", r#"["x", 7]"#, r#"[["x"]]"#] {
        assert_eq!(problem(json), "a.json: neither a text, nor a list of texts, nor an object", "{json}");
    }
}

#[test]
fn the_keys_of_a_json_without_captions_are_stored() {
    let image = png(3);
    let keys = |json: &str| build(&[("a.png", &image), ("a.json", json.as_bytes())])[0].json_keys.join(" ");
    assert_eq!(keys(r#"{"title": "x", "id": 3}"#), "id title");
    assert_eq!(keys(r#"{"captions": [1]}"#), "captions");
    let many: Vec<String> = (0..20).map(|key| format!(r#""{}{key:02}": 1"#, "k".repeat(100))).collect();
    let many = keys(&format!("{{{}}}", many.join(",")));
    assert!(many.len() < 400 && many.ends_with(" ..."), "{many}");
}

#[test]
fn an_empty_tar_has_no_samples() {
    assert_eq!(build(&[]), []);
}

#[test]
fn only_invalid_samples_have_a_problem() {
    let (image, too_long) = (png(3), vec![b'a'; (MAX_TXT_MEMBER_BYTES + 1) as usize]);
    let samples = build(&[
        ("captionless.png", &image),
        ("blank.png", &image),
        ("blank.txt", b" \n"),
        ("imageless.txt", b"a"),
        ("twice.png", &image),
        ("twice.jpg", &image),
        ("twice.txt", b"a"),
        ("long.png", &image),
        ("long.txt", &too_long),
        ("binary.png", &image),
        ("binary.txt", b"\xFF\xFE"),
        ("json.png", &image),
        ("json.json", b"[1]"),
        ("deep.png", &image),
        ("deep.json", "[".repeat(1_000_000).as_bytes()),
        ("torn.png", &image[..20]),
        ("torn.txt", b"a"),
        ("good.png", &image),
        ("good.txt", b"a"),
    ]);
    let problem = |key: &str| samples.iter().find(|sample| sample.key == key).unwrap().problem.clone();
    for (key, expected) in [
        ("imageless", "captions without an image"),
        ("twice", "more than one image"),
        ("long", "long.txt: 1048577 bytes: more than 1048576"),
        ("binary", "binary.txt: invalid utf-8"),
        ("json", "json.json: "),
        ("deep", "deep.json: "),
        ("torn", "torn.png: "),
    ] {
        let problem = problem(key).unwrap();
        assert!(problem.starts_with(expected) && problem.len() < 300, "{key}: {problem}");
    }
    // A sample without captions is valid at first: if all samples of the split lack captions, it is
    // used.
    for key in ["captionless", "blank", "good"] {
        assert_eq!(problem(key), None);
    }
}

#[test]
fn an_image_with_long_comments_before_its_header_is_accepted() {
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&RgbImage::new(9, 9)).unwrap();
    let comment = [&[0xFF, 0xFE, 0xFF, 0xFF][..], &[b' '; 0xFFFD]].concat();
    let late_header = [&jpeg[..2], &comment, &comment, &jpeg[2..]].concat();
    let samples = build(&[("a.jpg", &late_header), ("a.txt", b"a"), ("b.png", &png(3)), ("b.txt", b"b")]);
    assert!(samples.iter().all(|sample| sample.problem.is_none()), "{samples:?}");
}

#[test]
fn a_truncated_image_of_any_size_is_a_problem() {
    let mut large = Vec::new();
    let noise =
        RgbImage::from_fn(300, 300, |x, y| image::Rgb([(x * 37 + y * 91) as u8, (x * y * 7) as u8, (x ^ y) as u8]));
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut large, 95).encode_image(&noise).unwrap();
    assert!(large.len() > 65_536, "{} bytes", large.len());
    let samples = build(&[
        ("whole.jpg", &large),
        ("whole.txt", b"a"),
        ("cut.jpg", &large[..large.len() * 2 / 3]),
        ("cut.txt", b"a"),
    ]);
    let problems: Vec<_> = samples.into_iter().map(|sample| sample.problem).collect();
    assert_eq!(problems[0], None);
    assert!(problems[1].as_ref().is_some_and(|problem| problem.starts_with("cut.jpg: ")), "{problems:?}");
}

#[test]
fn a_written_index_can_be_parsed() {
    let mut grey = Cursor::new(Vec::new());
    image::ImageBuffer::from_pixel(2, 2, image::Luma([300_u16])).write_to(&mut grey, ImageFormat::Png).unwrap();
    let (grey, colours) = (grey.into_inner(), png(3));
    let tar = tar(&[
        ("a.png", &colours[..]),
        ("g.png", &grey),
        ("g.txt", b"g"),
        ("a.txt", "Ä \"cat\"".as_bytes()),
        ("b.txt", b"alone"),
    ]);
    let index = TarIndex::build(Cursor::new(&tar[..]), &version(&tar)).unwrap();
    assert_eq!([0, 1].map(|at: usize| index.samples[at].warnings.is_16_bit_grayscale), [false, true]);
    let json = index.to_json().unwrap();
    assert_eq!(TarIndex::parse(&json, &version(&tar)), Ok(Some(index)));
}

#[test]
fn an_index_of_another_tar_version_is_ignored() {
    let tar = tar(&[]);
    let json = TarIndex::build(Cursor::new(&tar[..]), &version(&tar)).unwrap().to_json().unwrap();
    let other = tar.len() as u64;
    for version in [Version::new(other, "new tag"), Version::new(other + 512, "tag")] {
        assert_eq!(TarIndex::parse(&json, &version), Ok(None));
    }
    let later = String::from_utf8(json).unwrap().replace("\"format\":3", "\"format\":4");
    assert_eq!(TarIndex::parse(later.as_bytes(), &version(&tar)), Ok(None));
    for text in ["", "{", "[]", &"[".repeat(1_000_000)] {
        assert_eq!(TarIndex::parse(text.as_bytes(), &version(&tar)), Ok(None));
    }
}

#[test]
fn an_index_with_impossible_ranges_is_refused() {
    let version = Version::new(10_000, "tag");
    let parse = |sample: &str| {
        let text = format!(r#"{{"format": 3, "size": 10000, "tag": "tag", "samples": [{sample}]}}"#);
        TarIndex::parse(text.as_bytes(), &version)
    };
    assert!(parse(r#"{"key": "a", "image": {"offset": 512, "length": 9488}, "captions": ["a"]}"#).unwrap().is_some());
    for (offset, length) in [(512, 9489), (u64::MAX, 1), (1, u64::MAX), (10_001, 0)] {
        let sample =
            format!(r#"{{"key": "a", "image": {{"offset": {offset}, "length": {length}}}, "captions": ["a"]}}"#);
        assert!(parse(&sample).unwrap_err().to_string().contains("outside of the tar"), "{sample}");
    }
    assert!(parse(r#"{"key": "a", "captions": ["a"]}"#).unwrap_err().to_string().contains("lacks its image"));
}

#[test]
fn an_index_with_a_too_large_image_is_refused() {
    let text = r#"{"format": 3, "size": 9000000000, "tag": "tag",
                   "samples": [{"key": "a", "image": {"offset": 512, "length": 8000000000}, "captions": ["a"]}]}"#;
    assert!(TarIndex::parse(text.as_bytes(), &Version::new(9_000_000_000, "tag")).is_err());
}

proptest! {
    #[test]
    fn keys_end_at_the_first_dot_of_the_name(folder in "([a-z][a-z.]{0,4}/){0,3}", stem in "[a-zé_-]{1,6}", middle in "(\\.[a-z]{1,3})?") {
        let path = format!("{folder}{stem}{middle}.jpg");
        let (key, extension) = (format!("{folder}{stem}"), format!("{}.jpg", middle.trim_start_matches('.')));
        let expected = match &*middle {
            "" => PathClass::SampleMember { key: &key, member_type: MemberType::Image },
            _ => PathClass::Unknown { extension: &extension },
        };
        prop_assert_eq!(classify_path(&path), expected);
    }

    #[test]
    fn arbitrary_paths_and_indices_never_panic(path in ".{0,30}", json in ".{0,60}") {
        let _ = (classify_path(&path), TarIndex::parse(json.as_bytes(), &Version::new(1, "t")));
    }
}
