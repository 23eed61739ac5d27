use super::*;
use crate::MetricFiles;

/// The message of an error, with the file's name in place of its path.
pub(super) fn message(error: &Error) -> String {
    let message = error.to_string();
    let (path, problem) = message.split_once(": ").unwrap();
    format!("{}: {problem}", path.rsplit('/').next().unwrap())
}

/// Reads files with these contents.
fn captions(references: &str, candidates: &str) -> Result<CaptionSet, Error> {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["refs.json", "cands.json"].map(|name| folder.path().join(name));
    std::fs::write(&paths[0], references).unwrap();
    std::fs::write(&paths[1], candidates).unwrap();
    CaptionSet::read(&paths[0], &paths[1], None)
}

fn problem(references: &str, candidates: &str) -> String {
    message(&captions(references, candidates).unwrap_err())
}

const COCO: &str = r#"{"info": {"year": 2014}, "licenses": [], "type": "captions",
    "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 7, "file_name": "7.jpg"}],
    "annotations": [{"id": 1, "image_id": 9, "caption": "A dog."}, {"id": 2, "image_id": 7, "caption": "A\ncat."},
                    {"id": 3, "image_id": 9, "caption": "One dog"}]}"#;

#[test]
fn all_formats_give_the_same_captions() {
    let expected = CaptionSet {
        ids: vec!["9".into(), "7".into()],
        images: vec![],
        items: vec![crate::item("dog", &["A dog.", "One dog"]), crate::item("cat", &["A cat."])],
        domains: vec![None; 2],
        images_without_candidate: 0,
        notes: vec![],
    };
    let references = [
        COCO,
        r#"{"9": ["A dog.", "One dog"], "7": "A\r\u2028\u0000cat."}"#,
        r#"[{"image_id": "9", "caption": "A dog."}, {"image_id": 7, "caption": "A\tcat."},
            {"image_id": 9, "caption": "One dog"}]"#,
    ];
    let candidates = [
        r#"{"7": "cat", "9": "dog"}"#,
        r#"{"7": ["cat"], "9": "dog"}"#,
        r#"[{"image_id": 7, "caption": "cat"}, {"image_id": "9", "caption": "dog", "score": 1}]"#,
    ];
    for references in references {
        for candidates in candidates {
            let mut got = captions(references, candidates).unwrap();
            for reference in got.items.iter_mut().flat_map(|item| &mut item.references) {
                *reference = reference.replace("   ", " ");
            }
            assert_eq!(
                got.images.iter().map(|names| names.id.clone()).collect::<Option<Vec<_>>>(),
                Some(got.ids.clone())
            );
            got.images.clear();
            assert_eq!(got, expected, "{references} {candidates}");
        }
    }
}

#[test]
fn images_may_be_named_like_fields_of_coco_annotations() {
    let got = captions(r#"{"annotations": ["A dog."], "images": ["A cat."]}"#, r#"{"annotations": "dog"}"#).unwrap();
    assert_eq!((got.ids, got.images_without_candidate), (vec!["annotations".to_owned()], 1));
}

#[test]
fn candidates_without_references_and_duplicates_are_refused() {
    let references = r#"{"1": ["a"], "2": ["b"], "3": []}"#;
    let set = captions(references, r#"{"2": "x"}"#).unwrap();
    assert_eq!(set.images_without_candidate, 2);
    let report = set.score(&Metrics::open(&MetricFiles::default()).unwrap());
    let last = report.notes.last().map(String::as_str);
    assert_eq!(last, Some("2 of 3 images with references have no candidate and are left out"));
    assert_eq!(
        problem(references, r#"{"2": "x", "8": "y", "5": "z"}"#),
        "refs.json: has no references for 2 of the candidates' images, such as \"5\"; add them"
    );
    assert_eq!(
        problem(references, r#"{"3": "x"}"#),
        "refs.json: image \"3\" has no references; add some or remove its candidate"
    );
    let twice = r#"[{"image_id": 2, "caption": "x"}, {"image_id": "2", "caption": "x"}]"#;
    assert_eq!(problem(references, twice), "cands.json: image \"2\" has 2 candidates; give it exactly one");
    assert_eq!(problem(references, r#"{"2": []}"#), "cands.json: image \"2\" has 0 candidates; give it exactly one");
    assert_eq!(problem(references, r#"{"2": "x", "2": "y"}"#), "cands.json: image \"2\" is listed twice; keep one");
}

#[test]
fn a_byte_order_mark_is_ignored() {
    let plain = captions(COCO, r#"{"7": "cat", "9": "dog"}"#).unwrap();
    let with_mark = captions(&format!("\u{feff}{COCO}"), "\u{feff}{\"7\": \"cat\", \"9\": \"dog\"}").unwrap();
    assert_eq!(with_mark, plain);
    assert_eq!(problem("\u{feff}", "{}"), "refs.json: the file is empty; expected JSON");
    for mark in [b"\xff\xfe{\0", b"\xfe\xff\0{"] {
        assert_eq!(
            CaptionDocument::parse(mark).err().map(|error| error.to_string()).as_deref(),
            Some("the file is UTF-16; save it as UTF-8")
        );
    }
}

#[test]
fn blank_references_are_refused_with_the_image_id() {
    for blank in ["", " ", "\\n", "\\u00a0\\t", "\\u200b", "\\ufeff", "\\u0000"] {
        assert_eq!(
            problem(&format!(r#"{{"1": ["a"], "2": ["a", "{blank}"]}}"#), r#"{"1": "x", "2": "x"}"#),
            "refs.json: reference 2 of image \"2\" is blank; remove it or write it"
        );
    }
    // References of images without candidates may be blank.
    assert_eq!(captions(r#"{"1": ["a"], "2": [" "]}"#, r#"{"1": "x"}"#).unwrap().images_without_candidate, 1);
}

#[test]
fn blank_candidates_score_zero_and_are_noted() {
    let references = r#"{"1": ["a dog"], "2": ["a cat"], "3": ["a bus"]}"#;
    let metrics = Metrics::open(&MetricFiles::default()).unwrap();
    let blank = captions(references, r#"{"1": "a dog", "2": " ", "3": ""}"#).unwrap().score(&metrics);
    let expected = "2 of 3 candidates are blank and score 0, such as that of image \"2\"";
    assert!(blank.notes.iter().any(|note| note == expected), "{:?}", blank.notes);
    for name in ["bleu_1", "rouge_l", "meteor", "cider"] {
        assert!(blank.items[name][0] > 0.1 && blank.items[name][1..].iter().all(|&score| score < 1e-6), "{name}");
    }
    let complete = captions(references, r#"{"1": "a dog", "2": "a cat", "3": "."}"#).unwrap().score(&metrics);
    assert!(!complete.notes.iter().any(|note| note.contains("blank")), "{:?}", complete.notes);
}

#[test]
fn standard_input_can_be_read_only_once() {
    let stdin = Path::new(STDIN);
    let error = CaptionSet::read(stdin, stdin, None).unwrap_err().to_string();
    assert_eq!(error, "standard input: can be read only once; name a file for the references or for the candidates");
}

#[test]
fn invalid_files_give_one_line_messages() {
    let deep = "[".repeat(1_000_000);
    let deep_value = format!(r#"{{"1": {deep}"#);
    let cases = [
        ("", "the file is empty; expected JSON"),
        ("{", "EOF while parsing an object at line 1 column 1"),
        ("{\n\"1\": [\"a\",]}", "trailing comma at line 2 column 11"),
        ("{} {}", "trailing characters at line 1 column 4"),
        (
            "7",
            "invalid type: integer `7`, expected captions by image, or COCO's annotations or results at line 1 column 1",
        ),
        ("{}", "the file has no captions"),
        ("[]", "the file has no captions"),
        (r#"{"annotations": [], "images": []}"#, "the file has no captions"),
        (r#"{"1": 5}"#, "\"1\" has neither a caption nor a list of captions"),
        (r#"{"a\nb": {}}"#, r#""a\nb" has neither a caption nor a list of captions"#),
        (r#"{"1": null}"#, "\"1\" has neither a caption nor a list of captions"),
        (r#"{"1": ["a", 5]}"#, "a caption of \"1\" is not a string"),
        (r#"{"1": [["a"]]}"#, "a caption of \"1\" is not a string"),
        (r#"["a"]"#, "entry 1 of the list is not {\"image_id\": ID, \"caption\": TEXT}"),
        (r#"[[1, "a"]]"#, "entry 1 of the list is not {\"image_id\": ID, \"caption\": TEXT}"),
        (
            r#"{"annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 1.5, "caption": "a"}]}"#,
            "entry 2 of the list is not {\"image_id\": ID, \"caption\": TEXT}",
        ),
        (r#"{"1": ["\ud800"]}"#, "unexpected end of hex escape at line 1 column 15"),
        (&deep, "recursion limit exceeded at line 1 column 128"),
        (&deep_value, "recursion limit exceeded at line 1 column 133"),
    ];
    for (text, expected) in cases {
        let got = problem(text, r#"{"1": "a"}"#);
        assert_eq!(got, format!("refs.json: {expected}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let error = CaptionSet::read(&folder.path().join("none.json"), folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("none.json: No such file"), "{error}");
}
