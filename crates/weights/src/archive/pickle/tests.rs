use proptest::prelude::*;

use super::pickler::{Pickler, StorageView};
use super::{PickleError, opcode as op, read};
use crate::tensor::Dtype;
use crate::test_util::peak_allocation;

const VIEW: StorageView<'_> =
    StorageView { class: "FloatStorage", key: "0", elements: 6, offset: 0, shape: &[2, 3], strides: &[3, 1] };

fn names(pickle: &[u8]) -> Result<Vec<String>, PickleError> {
    read(pickle).map(|views| views.into_keys().collect())
}

fn error(pickle: &[u8]) -> PickleError {
    read(pickle).map(|views| views.into_keys().collect::<Vec<_>>()).unwrap_err()
}

#[test]
fn a_state_dict_is_read() {
    let half = StorageView { class: "HalfStorage", key: "1", elements: 9, offset: 4, shape: &[], strides: &[] };
    let pickle = Pickler::new().state_dict(&[("a", VIEW), ("b.c", half)]).finish();
    let views = read(&pickle).unwrap();
    let (a, c) = (&views["a"], &views["b.c"]);
    assert_eq!((a.dtype, a.key, a.storage_bytes, a.offset), (Dtype::F32, "0", Some(24), 0));
    assert_eq!((a.shape.as_slice(), a.strides.as_slice()), ([2, 3].as_slice(), [3, 1].as_slice()));
    assert_eq!((c.dtype, c.key, c.storage_bytes, c.offset), (Dtype::F16, "1", Some(18), 4));
}

#[test]
fn a_state_dict_is_found_below_the_top() {
    for key in ["state_dict", "model"] {
        let pickle = Pickler::new().op(op::EMPTY_DICT).op(op::MARK).text("epoch").integer(3).text(key);
        let pickle = pickle.state_dict(&[("a", VIEW)]).op(op::SETITEMS).finish();
        assert_eq!(names(&pickle), Ok(vec!["a".to_owned()]));
    }
    let other = Pickler::new().op(op::EMPTY_DICT).text("other").state_dict(&[("a", VIEW)]).op(op::SETITEM).finish();
    assert_eq!(names(&other), Err(PickleError::NoTensors));
    assert_eq!(names(&Pickler::new().op(op::NONE).finish()), Err(PickleError::NoTensors));
}

#[test]
fn tensors_of_torchscript_submodules_are_found() {
    let module = |pickle: Pickler, class: &str| {
        pickle.global("__torch__.torch.nn", class).op(op::EMPTY_TUPLE).op(op::NEWOBJ).op(op::EMPTY_DICT).op(op::MARK)
    };
    let pickle = module(Pickler::new(), "Model").text("training").op(op::NEWFALSE).text("scale").tensor(VIEW);
    let pickle = module(pickle.text("visual"), "Tower").text("weight").tensor(VIEW).op(op::SETITEMS).op(op::BUILD);
    let pickle = pickle.op(op::SETITEMS).op(op::BUILD).finish();
    assert_eq!(names(&pickle), Ok(vec!["scale".to_owned(), "visual.weight".to_owned()]));
}

#[test]
fn a_module_that_contains_itself_is_refused() {
    let pickle = Pickler::new().global("__torch__", "M").op(op::EMPTY_TUPLE).op(op::NEWOBJ).op(op::BINPUT).bytes(&[0]);
    let recursive =
        pickle.op(op::EMPTY_DICT).text("a").op(op::BINGET).bytes(&[0]).op(op::SETITEM).op(op::BUILD).finish();
    assert_eq!(error(&recursive), PickleError::Malformed("the name of a tensor or module is too long"));
}

#[test]
fn modules_shared_many_times_are_visited_a_limited_number_of_times() {
    // Each module contains the previous one twice, so there are 2^60 paths to the first.
    let mut pickle = Pickler::new();
    for level in 0..60_u8 {
        pickle = pickle.global("__torch__", "M").op(op::EMPTY_TUPLE).op(op::NEWOBJ).op(op::EMPTY_DICT);
        if level > 0 {
            for name in ["a", "b"] {
                pickle = pickle.text(name).op(op::BINGET).bytes(&[level - 1]).op(op::SETITEM);
            }
        }
        pickle = pickle.op(op::BUILD).op(op::BINPUT).bytes(&[level]);
    }
    assert_eq!(error(&pickle.finish()), PickleError::TooMany("modules and tensors"));
}

#[test]
fn attributes_shared_by_many_modules_are_visited_a_limited_number_of_times() {
    let module = |pickle: Pickler| pickle.global("__torch__", "M").op(op::EMPTY_TUPLE).op(op::NEWOBJ);
    let pickle = Pickler::new().text("x").op(op::BINPUT).bytes(&[0]).op(op::EMPTY_DICT).op(op::MARK);
    let shared = pickle.bytes(&[op::BINGET, 0, op::NONE].repeat(100_000)).op(op::SETITEMS).op(op::BINPUT).bytes(&[1]);
    let pickle = (0..60).fold(module(shared).op(op::EMPTY_DICT), |pickle, number| {
        module(pickle.text(&number.to_string())).op(op::BINGET).bytes(&[1]).op(op::BUILD).op(op::SETITEM)
    });
    assert_eq!(error(&pickle.op(op::BUILD).finish()), PickleError::TooMany("attributes of modules"));
}

#[test]
fn globals_that_could_run_code_are_refused_by_name() {
    let forbidden = |module: &str, name: &str| PickleError::ForbiddenGlobal(format!("{module}.{name}"));
    let call = |pickle: Pickler| pickle.text("true").op(op::TUPLE1).op(op::REDUCE).finish();
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch.jit._pickle", "anything"),
        ("__torch__x", "Y"),
    ] {
        assert_eq!(error(&call(Pickler::new().global(module, name))), forbidden(module, name));
        let stacked = Pickler::new().text(module).text(name).op(op::STACK_GLOBAL);
        assert_eq!(error(&call(stacked)), forbidden(module, name));
        let instance = Pickler::new().op(op::MARK).op(op::INST).bytes(format!("{module}\n{name}\n").as_bytes());
        assert_eq!(error(&instance.finish()), forbidden(module, name));
    }
    let message = forbidden("os", "system").to_string();
    assert!(
        message.starts_with("refused: the pickle refers to the global os.system, which no tensor needs"),
        "{message}"
    );
}

#[test]
fn opcodes_that_no_tensor_needs_are_refused() {
    // OBJ, EXT1, EXT2, EXT4, NEWOBJ_EX, PERSID, NEXT_BUFFER, READONLY_BUFFER, and the text forms of
    // protocol 0.
    for opcode in [b'o', 0x82, 0x83, 0x84, 0x92, b'P', 0x97, 0x98, b'I', b'L', b'F', b'S', b'V', b'g', b'p', 0, 0xff] {
        let pickle =
            Pickler::new().op(op::MARK).global("collections", "OrderedDict").op(opcode).bytes(&[1; 8]).finish();
        assert_eq!(error(&pickle), PickleError::ForbiddenOpcode(opcode));
    }
}

#[test]
fn only_permitted_globals_can_be_called() {
    for pickle in [
        Pickler::new().text("os.system").op(op::EMPTY_TUPLE).op(op::REDUCE),
        Pickler::new().global("torch", "FloatStorage").op(op::EMPTY_TUPLE).op(op::REDUCE),
        Pickler::new().global("torch", "Size").op(op::EMPTY_TUPLE).op(op::REDUCE),
        Pickler::new().global("torch._utils", "_rebuild_tensor_v2").sizes(&[1, 2, 3, 4]).op(op::REDUCE),
        Pickler::new().global("collections", "OrderedDict").op(op::EMPTY_LIST).op(op::REDUCE),
        Pickler::new().global("torch", "Size").op(op::EMPTY_TUPLE).op(op::NEWOBJ),
        Pickler::new().text("x").op(op::EMPTY_DICT).op(op::BUILD),
        Pickler::new().text("x").op(op::BINPERSID),
        Pickler::new()
            .op(op::MARK)
            .text("module")
            .global("torch", "FloatStorage")
            .text("0")
            .text("cpu")
            .integer(1)
            .op(op::TUPLE)
            .op(op::BINPERSID),
    ] {
        assert!(matches!(error(&pickle.finish()), PickleError::Malformed(_)));
    }
}

#[test]
fn opcodes_that_underflow_the_stack_are_refused() {
    for opcodes in [&[op::POP][..], &[op::TUPLE], &[op::DUP], &[op::REDUCE], &[op::SETITEMS], &[op::STACK_GLOBAL], &[]]
    {
        let pickle = opcodes.iter().fold(Pickler::new(), |pickle, &opcode| pickle.op(opcode)).finish();
        assert!(matches!(error(&pickle), PickleError::Malformed(_)), "{opcodes:?}");
    }
    let below_the_mark = Pickler::new().text("x").op(op::MARK).op(op::TUPLE1).finish();
    assert_eq!(error(&below_the_mark), PickleError::Malformed("the stack is empty"));
    let odd_items = Pickler::new().op(op::EMPTY_DICT).op(op::MARK).text("a").op(op::SETITEMS).finish();
    assert_eq!(error(&odd_items), PickleError::Malformed("a key has no value"));
    let unset_memo = Pickler::new().op(op::BINGET).bytes(&[3]).finish();
    assert_eq!(error(&unset_memo), PickleError::Malformed("it reads a memo entry that was never written"));
}

#[test]
fn every_truncation_of_a_pickle_is_an_error() {
    let pickle = Pickler::new().state_dict(&[("a", VIEW), ("b", VIEW)]).finish();
    for length in 0..pickle.len() {
        assert!(read(&pickle[..length]).is_err(), "truncated to {length} bytes");
    }
}

#[test]
fn lengths_beyond_the_end_are_refused() {
    for bytes in [
        &[op::BINUNICODE, 0xff, 0xff, 0xff, 0xff][..],
        &[op::BINUNICODE8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[op::BINBYTES8, 0, 0, 0, 0, 0, 0, 0, 0x80],
        &[op::LONG4, 0xff, 0xff, 0xff, 0x7f],
    ] {
        let (found, peak_bytes) = peak_allocation(|| error(&Pickler::new().bytes(bytes).finish()));
        assert!(found == PickleError::Truncated && peak_bytes < 10_000, "{bytes:?} took {peak_bytes} bytes");
    }
}

#[test]
fn impossible_sizes_of_tensors_are_refused() {
    let storage_bytes = |view: StorageView<'_>| {
        let pickle = Pickler::new().state_dict(&[("a", view)]).finish();
        read(&pickle).map(|views| views["a"].storage_bytes)
    };
    assert_eq!(storage_bytes(StorageView { elements: i64::MAX, ..VIEW }), Ok(None));
    assert_eq!(storage_bytes(StorageView { elements: -1, ..VIEW }), Err(PickleError::Malformed("a size is negative")));
    assert_eq!(storage_bytes(StorageView { offset: -1, ..VIEW }), Err(PickleError::Malformed("a size is negative")));
    assert_eq!(
        storage_bytes(StorageView { strides: &[-1, 1], ..VIEW }),
        Err(PickleError::Malformed("a size is negative"))
    );
    let wrong_stride_count =
        Err(PickleError::Malformed("the number of a tensor's strides differs from that of its dimensions"));
    assert_eq!(storage_bytes(StorageView { strides: &[1], ..VIEW }), wrong_stride_count);
    let too_many_dimensions = Err(PickleError::Malformed("a tensor has more than 8 dimensions"));
    assert_eq!(storage_bytes(StorageView { shape: &[1; 9], strides: &[1; 9], ..VIEW }), too_many_dimensions);
}

#[test]
fn long_integers_are_read_in_twos_complement() {
    let offset_of = |bytes: &[u8]| {
        let pickle = Pickler::new().op(op::EMPTY_DICT).text("a").global("torch._utils", "_rebuild_tensor_v2");
        let pickle = pickle.op(op::MARK).storage("ByteStorage", "0", 1).op(op::LONG1).bytes(&[bytes.len() as u8]);
        let pickle = pickle.bytes(bytes).sizes(&[]).sizes(&[]).op(op::TUPLE).op(op::REDUCE).op(op::SETITEM).finish();
        read(&pickle).map(|views| views["a"].offset)
    };
    assert_eq!(offset_of(&[]), Ok(0));
    assert_eq!(offset_of(&[0xff, 0]), Ok(255));
    assert_eq!(offset_of(&[0xff]), Err(PickleError::Malformed("a size is negative")));
    assert_eq!(offset_of(&[1; 9]), Err(PickleError::Malformed("a size is not an integer")));
}

#[test]
fn nesting_a_million_deep_does_not_overflow_the_stack() {
    let depth = 1_000_000;
    let marks = vec![op::MARK; depth];
    assert_eq!(error(&Pickler::new().bytes(&marks).finish()), PickleError::Malformed("the stack is empty"));
    let lists = Pickler::new().bytes(&vec![op::EMPTY_LIST; depth]).bytes(&vec![op::APPEND; depth - 1]).finish();
    assert_eq!(error(&lists), PickleError::NoTensors);
    let tuples = Pickler::new().op(op::NONE).bytes(&vec![op::TUPLE1; depth]).finish();
    assert_eq!(error(&tuples), PickleError::NoTensors);
}

#[test]
fn the_number_of_values_is_limited() {
    let many = 3_000_000;
    let lists = Pickler::new().bytes(&vec![op::EMPTY_LIST; many]).finish();
    let (found, peak_bytes) = peak_allocation(|| error(&lists));
    assert!(found == PickleError::TooMany("values") && peak_bytes < 300 << 20, "took {peak_bytes} bytes");
    let memo_entries = (0..many as u32)
        .fold(Pickler::new().op(op::NONE), |pickle, number| pickle.op(op::LONG_BINPUT).bytes(&number.to_le_bytes()));
    let (found, peak_bytes) = peak_allocation(|| error(&memo_entries.finish()));
    assert!(found == PickleError::TooMany("memo entries") && peak_bytes < 300 << 20, "took {peak_bytes} bytes");
    assert_eq!(error(&vec![op::MARK; super::MAX_PICKLE_BYTES + 1]), PickleError::TooLong);
}

#[test]
fn names_and_texts_that_are_not_utf8_are_refused() {
    let text = Pickler::new().op(op::SHORT_BINUNICODE).bytes(&[1, 0xff]).finish();
    assert_eq!(error(&text), PickleError::Malformed("a text is not UTF-8"));
    assert_eq!(error(&[op::GLOBAL, 0xff, b'\n', b'\n']), PickleError::Malformed("a text is not UTF-8"));
    let named = Pickler::new().global("os\u{1b}[2J", "system").finish();
    assert_eq!(error(&named), PickleError::ForbiddenGlobal("os\u{fffd}[2J.system".to_owned()));
}

fn opcodes() -> impl Strategy<Value = Vec<u8>> {
    let permitted = prop::sample::select(
        &b"().012BCGJKMNQRTUX]abcdehijlqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x8f\x90\x91\x93\x94\x95\x96"[..],
    );
    let fragments = prop_oneof![
        8 => permitted.prop_map(|opcode| vec![opcode]),
        2 => prop::collection::vec(0..4_u8, 1..5),
        1 => Just(Pickler::new().tensor(VIEW).finish()).prop_map(|pickle| pickle[2..pickle.len() - 1].to_vec()),
        1 => Just(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec()),
        1 => Just(b"c__torch__\nM\n".to_vec()),
    ];
    prop::collection::vec(fragments, 0..60).prop_map(|fragments| fragments.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_opcodes_cause_no_panic_and_no_large_allocation(bytes in prop_oneof![opcodes(), prop::collection::vec(any::<u8>(), 0..300)]) {
        let pickle = Pickler::new().bytes(&bytes).finish();
        let (_, peak_bytes) = peak_allocation(|| read(&pickle).is_ok());
        prop_assert!(peak_bytes < 10_000 + 500 * pickle.len(), "took {peak_bytes} bytes for {}", pickle.len());
    }

    #[test]
    fn changed_pickles_cause_no_panic_and_no_large_allocation(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut pickle = Pickler::new().state_dict(&[("a", VIEW), ("b", VIEW)]).finish();
        for (index, byte) in changes {
            let index = index.index(pickle.len());
            pickle[index] = byte;
        }
        let (_, peak_bytes) = peak_allocation(|| read(&pickle).is_ok());
        prop_assert!(peak_bytes < 10_000 + 500 * pickle.len(), "took {peak_bytes} bytes for {}", pickle.len());
    }
}
