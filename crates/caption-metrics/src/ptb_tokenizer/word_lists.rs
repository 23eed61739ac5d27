//! The word lists of the lexer's rules. Words are compared without case.

/// Abbreviations that keep their full stop (rule `ABBREV1`).
pub(super) const ABBREVIATIONS: &[&str] = &[
    "al", "ala", "apr", "ariz", "assn", "aug", "bancorp", "bhd", "bldg", "blvd", "bros", "calif", "co", "colo", "conn",
    "corp", "cos", "ct", "dak", "dec", "ed.d", "esq", "est", "etc", "ext", "feb", "fla", "fri", "ga", "inc", "ind",
    "intl", "jan", "jr", "jul", "jun", "kan", "kans", "ky", "ltd", "mar", "md", "mich", "minn", "mo", "mon", "mont",
    "neb", "nev", "nov", "oct", "okla", "penn", "ph.d", "plc", "ppte", "pptes", "ppty", "pptys", "pte", "ptes", "pty",
    "ptys", "rd", "rt", "sep", "sept", "seq", "sq", "sr", "sys", "tel", "tenn", "thu", "thurs", "tue", "tues", "univ",
    "va", "vt", "wed", "wis", "wisc", "wyo",
];

/// Abbreviations that keep their full stop only if capitalised, because most are also other words
/// (rule `ABBREV1`).
pub(super) const CAPITALISED_ABBREVIATIONS: &[&str] =
    &["ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash"];

/// Abbreviations before names, which keep their full stop (rule `ABBREV2`, without those that
/// contain a full stop).
pub(super) const TITLE_ABBREVIATIONS: &[&str] = &[
    "adj", "adm", "adv", "alex", "assoc", "asst", "atty", "attys", "ave", "brig", "capt", "cf", "cie", "cmdr", "col",
    "comdr", "cpl", "dept", "det", "dr", "drs", "elec", "ens", "ft", "gen", "gov", "govs", "hon", "insp", "invt",
    "jos", "lieut", "lt", "maj", "messrs", "mfg", "mlle", "mme", "mr", "mrs", "ms", "msgr", "mt", "mtg", "natl", "pfc",
    "ph", "pres", "prof", "profs", "pvt", "rep", "reps", "rev", "sen", "sens", "sfc", "sgt", "spc", "st", "ste",
    "supt", "supts", "treas", "vs", "wm",
];

/// Abbreviations that keep their full stop only before a number (rule `ABBREV3`).
pub(super) const NUMBER_ABBREVIATIONS: &[&str] = &["art", "bldg", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"];

/// Words that start a sentence if capitalised, so that a full stop before them ends the previous
/// one.
pub(super) const SENTENCE_STARTERS: &[&str] = &[
    "a",
    "about",
    "according",
    "additionally",
    "after",
    "an",
    "as",
    "at",
    "but",
    "earlier",
    "he",
    "her",
    "here",
    "however",
    "if",
    "in",
    "it",
    "last",
    "many",
    "more",
    "mr.",
    "ms.",
    "now",
    "once",
    "one",
    "other",
    "our",
    "she",
    "since",
    "so",
    "some",
    "such",
    "that",
    "the",
    "their",
    "then",
    "there",
    "these",
    "they",
    "this",
    "we",
    "what",
    "when",
    "while",
    "yet",
    "you",
];

/// Words that become two tokens, with the length of the first.
pub(super) const SPLIT_WORDS: &[(&str, usize)] =
    &[("cannot", 3), ("gimme", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("wanna", 3), ("'tis", 2), ("'twas", 2)];

/// Extensions of file names (rule `FILENAME`).
pub(super) const FILE_EXTENSIONS: &[&str] = &[
    "bat", "bmp", "c", "cgi", "class", "cpp", "dll", "doc", "docx", "exe", "gif", "gz", "h", "htm", "html", "jar",
    "java", "jpeg", "jpg", "mov", "mp3", "pdf", "php", "pl", "png", "ppt", "ps", "py", "sql", "tar", "txt", "wav", "x",
    "xml", "zip",
];

/// Clitics after their apostrophe (rule `REDAUX`), except `n't`.
pub(super) const CLITICS: &[&str] = &["ll", "re", "ve", "d", "m", "s"];

/// Words that begin with an apostrophe (rule `APOWORD`), listed without it.
pub(super) const ELISIONS: &[&str] = &["cause", "em", "n", "till", "til"];

/// Words with an inner apostrophe that match no general rule.
pub(super) const APOSTROPHE_EXCEPTIONS: &[&str] =
    &["c'mon", "cont'd.", "e'er", "ev'ry", "li'l", "nat'l", "nor'easter", "s'mores"];

/// Words that end with an apostrophe (rule `APOWORD`), listed without it.
pub(super) const APOSTROPHE_ENDED: &[&str] = &["d", "dunkin", "j", "l", "ol", "somethin"];

/// Other words that match no general rule.
pub(super) const OTHER_EXCEPTIONS: &[&str] = &["anti-", "pro-", "s&ls", "s&amp;ls", "s&p-500", "s&amp;p-500"];
