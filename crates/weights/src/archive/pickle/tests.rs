use proptest::prelude::*;

use super::assembler::{Assembler, Piece};
use super::{PickleError, opcode as op, read};
use crate::tensor::Dtype;
use crate::testing::most_taken;

const PIECE: Piece<'_> =
    Piece { class: "FloatStorage", key: "0", elements: 6, offset: 0, shape: &[2, 3], strides: &[3, 1] };

fn names(pickle: &[u8]) -> Result<Vec<String>, PickleError> {
    read(pickle).map(|views| views.into_keys().collect())
}

fn fault(pickle: &[u8]) -> PickleError {
    read(pickle).map(|views| views.into_keys().collect::<Vec<_>>()).unwrap_err()
}

#[test]
fn a_state_dict_is_read() {
    let half = Piece { class: "HalfStorage", key: "1", elements: 9, offset: 4, shape: &[], strides: &[] };
    let pickle = Assembler::new().state_dict(&[("a", PIECE), ("b.c", half)]).end();
    let views = read(&pickle).unwrap();
    let (a, c) = (&views["a"], &views["b.c"]);
    assert_eq!((a.dtype, a.key, a.storage_bytes, a.offset), (Dtype::F32, "0", Some(24), 0));
    assert_eq!((a.shape.as_slice(), a.strides.as_slice()), ([2, 3].as_slice(), [3, 1].as_slice()));
    assert_eq!((c.dtype, c.key, c.storage_bytes, c.offset), (Dtype::F16, "1", Some(18), 4));
}

#[test]
fn a_state_dict_is_found_below_the_top() {
    for key in ["state_dict", "model"] {
        let pickle = Assembler::new().op(op::EMPTY_DICT).op(op::MARK).text("epoch").integer(3).text(key);
        let pickle = pickle.state_dict(&[("a", PIECE)]).op(op::SETITEMS).end();
        assert_eq!(names(&pickle), Ok(vec!["a".to_owned()]));
    }
    let other = Assembler::new().op(op::EMPTY_DICT).text("other").state_dict(&[("a", PIECE)]).op(op::SETITEM).end();
    assert_eq!(names(&other), Err(PickleError::NoTensors));
    assert_eq!(names(&Assembler::new().op(op::NONE).end()), Err(PickleError::NoTensors));
}

#[test]
fn attributes_of_torchscript_modules_are_followed() {
    let module = |pickle: Assembler, class: &str| {
        pickle.global("__torch__.torch.nn", class).op(op::EMPTY_TUPLE).op(op::NEWOBJ).op(op::EMPTY_DICT).op(op::MARK)
    };
    let pickle = module(Assembler::new(), "Model").text("training").op(op::NEWFALSE).text("scale").tensor(PIECE);
    let pickle = module(pickle.text("visual"), "Tower").text("weight").tensor(PIECE).op(op::SETITEMS).op(op::BUILD);
    let pickle = pickle.op(op::SETITEMS).op(op::BUILD).end();
    assert_eq!(names(&pickle), Ok(vec!["scale".to_owned(), "visual.weight".to_owned()]));
}

#[test]
fn a_module_that_contains_itself_is_refused() {
    let pickle =
        Assembler::new().global("__torch__", "M").op(op::EMPTY_TUPLE).op(op::NEWOBJ).op(op::BINPUT).bytes(&[0]);
    let itself = pickle.op(op::EMPTY_DICT).text("a").op(op::BINGET).bytes(&[0]).op(op::SETITEM).op(op::BUILD).end();
    assert_eq!(fault(&itself), PickleError::Malformed("the name of a tensor is too long"));
}

#[test]
fn modules_that_share_their_parts_are_not_walked_without_end() {
    // Each module has the one before it twice, so that there are 2^60 ways to the first.
    let mut pickle = Assembler::new();
    for level in 0..60_u8 {
        pickle = pickle.global("__torch__", "M").op(op::EMPTY_TUPLE).op(op::NEWOBJ).op(op::EMPTY_DICT);
        if level > 0 {
            for name in ["a", "b"] {
                pickle = pickle.text(name).op(op::BINGET).bytes(&[level - 1]).op(op::SETITEM);
            }
        }
        pickle = pickle.op(op::BUILD).op(op::BINPUT).bytes(&[level]);
    }
    assert_eq!(fault(&pickle.end()), PickleError::TooMany("modules and tensors"));
}

#[test]
fn attributes_that_many_modules_share_are_not_looked_at_without_end() {
    let module = |pickle: Assembler| pickle.global("__torch__", "M").op(op::EMPTY_TUPLE).op(op::NEWOBJ);
    let pickle = Assembler::new().text("x").op(op::BINPUT).bytes(&[0]).op(op::EMPTY_DICT).op(op::MARK);
    let shared = pickle.bytes(&[op::BINGET, 0, op::NONE].repeat(100_000)).op(op::SETITEMS).op(op::BINPUT).bytes(&[1]);
    let pickle = (0..60).fold(module(shared).op(op::EMPTY_DICT), |pickle, number| {
        module(pickle.text(&number.to_string())).op(op::BINGET).bytes(&[1]).op(op::BUILD).op(op::SETITEM)
    });
    assert_eq!(fault(&pickle.op(op::BUILD).end()), PickleError::TooMany("modules and tensors"));
}

#[test]
fn whatever_could_run_code_is_refused_by_name() {
    let asked = |module: &str, name: &str| PickleError::Asked(format!("{module}.{name}"));
    let call = |pickle: Assembler| pickle.text("true").op(op::TUPLE1).op(op::REDUCE).end();
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
        assert_eq!(fault(&call(Assembler::new().global(module, name))), asked(module, name));
        let stacked = Assembler::new().text(module).text(name).op(op::STACK_GLOBAL);
        assert_eq!(fault(&call(stacked)), asked(module, name));
        let instance = Assembler::new().op(op::MARK).op(op::INST).bytes(format!("{module}\n{name}\n").as_bytes());
        assert_eq!(fault(&instance.end()), asked(module, name));
    }
    let message = asked("os", "system").to_string();
    assert!(message.starts_with("refused: the pickle asks for os.system, which is no tensor"), "{message}");
}

#[test]
fn opcodes_that_no_tensor_needs_are_refused() {
    // OBJ, EXT1, EXT2, EXT4, NEWOBJ_EX, PERSID, NEXT_BUFFER, READONLY_BUFFER, and the text forms of protocol 0.
    for opcode in [b'o', 0x82, 0x83, 0x84, 0x92, b'P', 0x97, 0x98, b'I', b'L', b'F', b'S', b'V', b'g', b'p', 0, 0xff] {
        let pickle = Assembler::new().op(op::MARK).global("collections", "OrderedDict").op(opcode).bytes(&[1; 8]).end();
        assert_eq!(fault(&pickle), PickleError::Opcode(opcode));
    }
}

#[test]
fn only_what_is_on_the_list_can_be_called() {
    for pickle in [
        Assembler::new().text("os.system").op(op::EMPTY_TUPLE).op(op::REDUCE),
        Assembler::new().global("torch", "FloatStorage").op(op::EMPTY_TUPLE).op(op::REDUCE),
        Assembler::new().global("torch", "Size").op(op::EMPTY_TUPLE).op(op::REDUCE),
        Assembler::new().global("torch._utils", "_rebuild_tensor_v2").sizes(&[1, 2, 3, 4]).op(op::REDUCE),
        Assembler::new().global("collections", "OrderedDict").op(op::EMPTY_LIST).op(op::REDUCE),
        Assembler::new().global("torch", "Size").op(op::EMPTY_TUPLE).op(op::NEWOBJ),
        Assembler::new().text("x").op(op::EMPTY_DICT).op(op::BUILD),
        Assembler::new().text("x").op(op::BINPERSID),
        Assembler::new()
            .op(op::MARK)
            .text("module")
            .global("torch", "FloatStorage")
            .text("0")
            .text("cpu")
            .integer(1)
            .op(op::TUPLE)
            .op(op::BINPERSID),
    ] {
        assert!(matches!(fault(&pickle.end()), PickleError::Malformed(_)));
    }
}

#[test]
fn a_stack_that_does_not_add_up_is_refused() {
    for opcodes in [&[op::POP][..], &[op::TUPLE], &[op::DUP], &[op::REDUCE], &[op::SETITEMS], &[op::STACK_GLOBAL], &[]]
    {
        let pickle = opcodes.iter().fold(Assembler::new(), |pickle, &opcode| pickle.op(opcode)).end();
        assert!(matches!(fault(&pickle), PickleError::Malformed(_)), "{opcodes:?}");
    }
    let below_the_mark = Assembler::new().text("x").op(op::MARK).op(op::TUPLE1).end();
    assert_eq!(fault(&below_the_mark), PickleError::Malformed("the stack is empty"));
    let odd = Assembler::new().op(op::EMPTY_DICT).op(op::MARK).text("a").op(op::SETITEMS).end();
    assert_eq!(fault(&odd), PickleError::Malformed("a key has no value"));
    let unknown = Assembler::new().op(op::BINGET).bytes(&[3]).end();
    assert_eq!(fault(&unknown), PickleError::Malformed("it recalls what it never remembered"));
}

#[test]
fn every_cut_of_a_pickle_is_noticed() {
    let pickle = Assembler::new().state_dict(&[("a", PIECE), ("b", PIECE)]).end();
    for length in 0..pickle.len() {
        assert!(read(&pickle[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn lengths_without_the_bytes_are_refused() {
    for bytes in [
        &[op::BINUNICODE, 0xff, 0xff, 0xff, 0xff][..],
        &[op::BINUNICODE8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[op::BINBYTES8, 0, 0, 0, 0, 0, 0, 0, 0x80],
        &[op::LONG4, 0xff, 0xff, 0xff, 0x7f],
    ] {
        let (found, taken) = most_taken(|| fault(&Assembler::new().bytes(bytes).end()));
        assert!(found == PickleError::Truncated && taken < 10_000, "{bytes:?} took {taken} bytes");
    }
}

#[test]
fn absurd_sizes_are_refused_or_left_to_the_storage_to_refuse() {
    let of = |piece: Piece<'_>| {
        let pickle = Assembler::new().state_dict(&[("a", piece)]).end();
        read(&pickle).map(|views| views["a"].storage_bytes)
    };
    assert_eq!(of(Piece { elements: i64::MAX, ..PIECE }), Ok(None));
    assert_eq!(of(Piece { elements: -1, ..PIECE }), Err(PickleError::Malformed("a size is negative")));
    assert_eq!(of(Piece { offset: -1, ..PIECE }), Err(PickleError::Malformed("a size is negative")));
    assert_eq!(of(Piece { strides: &[-1, 1], ..PIECE }), Err(PickleError::Malformed("a size is negative")));
    let ragged = Err(PickleError::Malformed("a tensor has not as many strides as dimensions"));
    assert_eq!(of(Piece { strides: &[1], ..PIECE }), ragged);
    let many = Err(PickleError::Malformed("a tensor has more than 8 dimensions"));
    assert_eq!(of(Piece { shape: &[1; 9], strides: &[1; 9], ..PIECE }), many);
}

#[test]
fn long_integers_are_read_in_twos_complement() {
    let elements = |bytes: &[u8]| {
        let offset = Assembler::new().op(op::EMPTY_DICT).text("a").global("torch._utils", "_rebuild_tensor_v2");
        let offset = offset.op(op::MARK).storage("ByteStorage", "0", 1).op(op::LONG1).bytes(&[bytes.len() as u8]);
        let pickle = offset.bytes(bytes).sizes(&[]).sizes(&[]).op(op::TUPLE).op(op::REDUCE).op(op::SETITEM).end();
        read(&pickle).map(|views| views["a"].offset)
    };
    assert_eq!(elements(&[]), Ok(0));
    assert_eq!(elements(&[0xff, 0]), Ok(255));
    assert_eq!(elements(&[0xff]), Err(PickleError::Malformed("a size is negative")));
    assert_eq!(elements(&[1; 9]), Err(PickleError::Malformed("a size is no integer")));
}

#[test]
fn nesting_a_million_deep_does_no_harm() {
    let deep = 1_000_000;
    let marks = vec![op::MARK; deep];
    assert_eq!(fault(&Assembler::new().bytes(&marks).end()), PickleError::Malformed("the stack is empty"));
    let tuples = Assembler::new().bytes(&vec![op::EMPTY_LIST; deep]).bytes(&vec![op::APPEND; deep - 1]).end();
    assert_eq!(fault(&tuples), PickleError::NoTensors);
    let tuples = Assembler::new().op(op::NONE).bytes(&vec![op::TUPLE1; deep]).end();
    assert_eq!(fault(&tuples), PickleError::NoTensors);
}

#[test]
fn what_a_pickle_makes_is_bounded() {
    let many = 3_000_000;
    let lists = Assembler::new().bytes(&vec![op::EMPTY_LIST; many]).end();
    let (found, taken) = most_taken(|| fault(&lists));
    assert!(found == PickleError::TooMany("values") && taken < 300 << 20, "took {taken} bytes");
    let memories = (0..many as u32)
        .fold(Assembler::new().op(op::NONE), |pickle, number| pickle.op(op::LONG_BINPUT).bytes(&number.to_le_bytes()));
    let (found, taken) = most_taken(|| fault(&memories.end()));
    assert!(found == PickleError::TooMany("memories") && taken < 300 << 20, "took {taken} bytes");
    assert_eq!(fault(&vec![op::MARK; super::MAX_BYTES + 1]), PickleError::TooLong);
}

#[test]
fn names_and_texts_have_to_be_utf8() {
    let text = Assembler::new().op(op::SHORT_BINUNICODE).bytes(&[1, 0xff]).end();
    assert_eq!(fault(&text), PickleError::Malformed("a text is not UTF-8"));
    assert_eq!(fault(&[op::GLOBAL, 0xff, b'\n', b'\n']), PickleError::Malformed("a text is not UTF-8"));
    let named = Assembler::new().global("os\u{1b}[2J", "system").end();
    assert_eq!(fault(&named), PickleError::Asked("os\u{fffd}[2J.system".to_owned()));
}

fn opcodes() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(
        &b"().012BCGJKMNQRTUX]abcdehijlqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x8f\x90\x91\x93\x94\x95\x96"[..],
    );
    let pieces = prop_oneof![
        8 => known.prop_map(|opcode| vec![opcode]),
        2 => prop::collection::vec(0..4_u8, 1..5),
        1 => Just(Assembler::new().tensor(PIECE).end()).prop_map(|pickle| pickle[2..pickle.len() - 1].to_vec()),
        1 => Just(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec()),
        1 => Just(b"c__torch__\nM\n".to_vec()),
    ];
    prop::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic_or_take_much(bytes in prop_oneof![opcodes(), prop::collection::vec(any::<u8>(), 0..300)]) {
        let pickle = Assembler::new().bytes(&bytes).end();
        let (_, taken) = most_taken(|| read(&pickle).is_ok());
        prop_assert!(taken < 10_000 + 500 * pickle.len(), "took {taken} bytes for {}", pickle.len());
    }

    #[test]
    fn no_change_to_a_good_pickle_makes_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut pickle = Assembler::new().state_dict(&[("a", PIECE), ("b", PIECE)]).end();
        for (place, byte) in changes {
            let place = place.index(pickle.len());
            pickle[place] = byte;
        }
        let (_, taken) = most_taken(|| read(&pickle).is_ok());
        prop_assert!(taken < 10_000 + 500 * pickle.len(), "took {taken} bytes for {}", pickle.len());
    }
}
