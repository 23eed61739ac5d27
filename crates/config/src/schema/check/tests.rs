use std::path::Path;

use super::*;

const RUN: &str = "
name: test
output: /nowhere
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
captioner: { preset: tiny }
evaluator: { preset: tiny }
stages:
  - { name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: scst, objective: scst, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: dico, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

/// The message with which [`RUN`] is refused when `addition` is added to stage `stage`; empty if it
/// is accepted. An `objective` replaces that of the stage.
fn problem(stage: &str, addition: &str) -> String {
    let (start, rest) = RUN.split_once(&format!("name: {stage},")).unwrap();
    let rest = if addition.starts_with("objective:") { rest.split_once(',').unwrap().1 } else { rest };
    let text = format!("{start}name: {stage}, {addition},{rest}");
    match RunFile::parse(Path::new("run.yaml"), &text) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_run_file() {
    let parse = |text: &str| RunFile::parse(Path::new("run.yaml"), text).map_err(|error| error.to_string());
    assert_eq!(parse(&format!("\u{feff}{}", RUN.trim_start())), parse(RUN));
    // Nor does the byte-order mark count in the column of an error.
    assert_eq!(parse("\u{feff}nam: test"), parse("nam: test"));
}

#[test]
fn workers_and_lengths_that_do_not_fit_are_named_with_their_numbers() {
    let problem = |from: &str, to: &str| match RunFile::parse(Path::new("run.yaml"), &RUN.replace(from, to)) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let found = problem("max: 2", "max: 5");
    assert!(found.contains("stages[0].batch: is 4, and workers.max is 5: every worker needs a sample"), "{found}");
    let found = problem("max: 2", "max: 100001");
    assert!(found.contains("workers.max: is 100001, a run can have 100000 workers at most"), "{found}");
    let target = |preset: &str, most: u32| {
        let captioner = format!("captioner: {{ preset: {preset}, max_target_length: {most} }}");
        let text = RUN.replace("captioner: { preset: tiny }", &captioner);
        RunFile::parse(Path::new("run.yaml"), &text).err().map_or_else(String::new, |error| error.to_string())
    };
    assert!(target("tiny", 2).contains("captioner.max_target_length: must be at least 3"));
    assert!(target("tiny", 78).contains("captioner.max_target_length: is 78, the captioner has 77 positions"));
    assert!(target("dico", 1025).contains("captioner.max_target_length: is 1025, the captioner has 1024 positions"));
    assert_eq!([target("tiny", 77), target("dico", 1024)], ["", ""]);
    let imported = RUN.replace("captioner: { preset: tiny }", "captioner: { weights: folder }");
    let imported = imported.replace("objective: cross_entropy", "objective: dico");
    let parsed = RunFile::parse(Path::new("run.yaml"), &imported).unwrap();
    // The captioner is imported. The length of targets does not matter if no stage learns targets.
    assert_eq!((parsed.captioner.max_target_length, parsed.check_positions(30)), (77, Ok(())));
    let parsed = RunFile::parse(Path::new("run.yaml"), RUN).unwrap();
    let problem = |positions| parsed.check_positions(positions).unwrap_err().to_string();
    assert_eq!(problem(40), "captioner.max_target_length is 77, the captioner has 40 positions");
    assert_eq!(problem(20), "decoding.max_length is 30, the captioner has 20 positions");
}

#[test]
fn numbers_out_of_range_are_refused() {
    let problem = |from: &str, to: &str| match RunFile::parse(Path::new("run.yaml"), &RUN.replace(from, to)) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let control = |setting: &str| problem("name: test", &format!("name: test\ncontrol: {{ {setting} }}"));
    for setting in ["heartbeat_timeout: 0.01", "heartbeat_timeout: 2592000", "stall_timeout: 0.5", "window: 10000"] {
        assert_eq!(control(setting), "", "{setting}");
    }
    for setting in ["heartbeat_timeout", "stall_timeout"] {
        for value in ["0", "0.001", "-1", "1.0e300", ".nan", ".inf"] {
            let found = control(&format!("{setting}: {value}"));
            assert!(found.contains(&format!("control.{setting}: must be from 0.01 to 2592000 seconds")), "{found}");
        }
    }
    assert!(control("window: 10001").contains("control.window: must be in 1..=10000"));
    let found = problem("steps: 9", "steps: 18446744073709551615");
    assert!(found.contains("stages[0].steps: is 18446744073709551615, a stage can have 1099511627776"), "{found}");
    let found = problem("batch: 4", "batch: 4294967295");
    assert!(found.contains("stages[0].batch: is 4294967295, a step can have 1048576 samples at most"), "{found}");
    let stage = RUN.lines().last().unwrap();
    let stages: String =
        (0..1_000).map(|number| format!("{}\n", stage.replace("name: dico", &format!("name: d{number}")))).collect();
    assert!(
        RunFile::parse(Path::new("run.yaml"), &format!("{RUN}{stages}"))
            .unwrap_err()
            .to_string()
            .contains("stages: are 1004")
    );
}

#[test]
fn json_of_a_coordinator_passes_the_same_checks() {
    let run = RunFile::parse(Path::new("run.yaml"), RUN).unwrap();
    let json = serde_json::to_string(&run).unwrap();
    assert_eq!(RunFile::from_json(&json), Ok(run));
    assert!(RunFile::from_json("").unwrap_err().to_string().contains("EOF"));
    let prefix = format!("preset: tiny, prefix: \"{}\"", "x".repeat(1 << 20));
    let long = RUN.replace("evaluator: { preset: tiny", &format!("evaluator: {{ {prefix}"));
    let error = RunFile::parse(Path::new("run.yaml"), &long).unwrap_err().to_string();
    assert!(error.contains("stages: make the run file") && error.contains("1048576 at most"), "{error}");
    assert!(RunFile::from_json("[]").is_err());
    let changed = |from: &str, to: &str| RunFile::from_json(&json.replace(from, to)).unwrap_err().to_string();
    assert_eq!(changed("\"steps\":9", "\"steps\":0"), "stages[0].steps: must be at least 1");
    assert_eq!(
        changed("\"name\":\"clip\"", "\"name\":\"../a\""),
        "stages[0].name: must be letters, digits, `-`, `_` or `.`"
    );
    assert!(changed("{", &" ".repeat(crate::MAX_JSON_BYTES)).contains("2097152 at most"));
}

#[test]
fn a_run_has_one_set_of_lora_factors() {
    let stage = RUN.lines().find(|line| line.contains("name: clip")).unwrap();
    let with = |name: &str, trainable: &str| {
        let contrastive = format!("name: {name}, objective: {{ contrastive: {{ trainable: {trainable} }} }}");
        stage.replace("name: clip, objective: contrastive", &contrastive)
    };
    let run = |stages: &[String]| match RunFile::parse(Path::new("run.yaml"), &RUN.replace(stage, &stages.join("\n"))) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let factors = "{ lora: { targets: [mlp, attention] } }";
    let same = "{ lora: { targets: [attention, mlp], rank: 4 } }";
    assert_eq!(run(&[with("a", factors), with("b", "all"), with("c", "projections"), with("d", same)]), "");
    for other in ["{ lora: { rank: 8 } }", "{ lora: { targets: [mlp] } }", "{ lora: { alpha: 2 } }"] {
        let found = run(&[with("a", factors), with("b", "all"), with("c", other)]);
        let expected = "stages[2].objective.contrastive.trainable.lora: differs from that of stage a";
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    assert_eq!(problem("dico", "evaluate_first: true"), "");
    for (stage, addition, expected) in [
        ("dico", "metric: sider", "stages[3].metric: unknown metric `sider`: did you mean `cider`?"),
        ("dico", "metric: rep_4", "stages[3].metric: unknown metric `rep_4`"),
        ("dico", "patience: 3", "stages[3].patience: needs `metric`, to tell what is better"),
        ("dico", "patience: 3, metric: cider", "stages[3].patience: needs `evaluate_every`"),
        ("dico", "metric: ref_clip_s", "stages[3].metric: unknown metric `ref_clip_s`"),
        ("dico", "metric: spice", "stages[3].metric: unknown metric `spice`"),
        ("dico", "scst: { baseline: greedy }", "stages[3].scst: is for `objective: scst` only"),
        ("scst", "dico: { beta: 0.1 }", "stages[2].dico: is for `objective: dico` only"),
        ("dico", "objective: { dico: { beta: 0 } }", "stages[3].objective.dico.beta: must be above 0"),
        ("dico", "objective: { dico: { beat: 1 } }", "unknown key `beat`: did you mean `beta`?"),
        ("dico", "objective: diko", "run.yaml:12:19: unknown value `diko`: did you mean `dico`?"),
        ("dico", "objective: { diko: {} }", "unknown value `diko`: did you mean `dico`?"),
        ("dico", "objective: { dico: {}, scst: {} }", "run.yaml:12:"),
        ("dico", "objective: 5", "run.yaml:12:19: "),
        ("scst", "guard: [{ metric: gamma_entropy, above: 1, action: warn }]", "unknown metric `gamma_entropy`"),
        ("clip", "guard: [{ metric: kl, above: 1, action: warn }]", "unknown metric `kl`"),
        ("dico", "guard: [{ metric: kl, below: .inf, action: warn }]", "stages[3].guard[0].below: must be finite"),
        ("dico", "patience: 0, metric: cider", "stages[3].patience: must be at least 1"),
        ("dico", "objective: { dico: { reward: {} } }", "stages[3].objective.dico.reward: needs at least one reward"),
        (
            "dico",
            "objective: { dico: { reward: { clip_s: 1 } } }",
            "stages[3].objective.dico.reward: there is no evaluator `clip_s`: the rewards are pac_s, cider",
        ),
        (
            "scst",
            "objective: { scst: { reward: { cider: .nan } } }",
            "stages[2].objective.scst.reward: needs finite weights",
        ),
        (
            "scst",
            "objective: { scst: { reward: { missing_end: -1 } } }",
            "stages[2].objective.scst.reward: needs at least one reward",
        ),
        (
            "scst",
            "objective: { scst: { reward: { cider: 0, missing_end: -1 } } }",
            "stages[2].objective.scst.reward: needs at least one reward",
        ),
        (
            "scst",
            "objective: { scst: { reward: { cider: 1, missing_end: 0.1 } } }",
            "stages[2].objective.scst.reward: `missing_end` is a penalty: give it a weight below 0",
        ),
        (
            "dico",
            "objective: { dico: { reward: { pac_s: 1, missing_end: 0 } } }",
            "stages[3].objective.dico.reward: `missing_end` is a penalty",
        ),
        (
            "dico",
            "objective: { dico: { reward: { pac_s: 1, missing_end: -.inf } } }",
            "stages[3].objective.dico.reward: needs finite weights",
        ),
        (
            "clip",
            "objective: { contrastive: { generated_images: 0.1 } }",
            "stages[0].objective.contrastive.generated_images: needs data.positives.images",
        ),
        ("dico", "guard: [{ metric: kl, action: warn }]", "stages[3].guard[0].metric: needs either `above` or `below`"),
        ("dico", "guard: [{ metric: lk, above: 1, action: warn }]", "stages[3].guard[0].metric: unknown metric `lk`"),
        (
            "dico",
            "guard: [{ metric: kl, above: 1, for: 0, action: warn }]",
            "stages[3].guard[0].for: must be at least 1",
        ),
        ("dico", "guard: [{ metric: kl, above: 1, action: sleep }]", "unknown value `sleep`"),
    ] {
        let problem = problem(stage, addition);
        assert!(problem.contains(expected), "{addition}: {problem}");
    }
    for trainable in ["all", "projections", "{ lora: {} }", "{ lora: { rank: 8, alpha: 16, targets: [mlp] } }"] {
        assert_eq!(problem("clip", &format!("objective: {{ contrastive: {{ trainable: {trainable} }} }}")), "");
    }
    for (lora, expected) in [
        ("rank: 0", "stages[0].objective.contrastive.trainable.lora.rank: must be in 1..=256"),
        ("rank: 257", "trainable.lora.rank: must be in 1..=256"),
        ("alpha: 0", "trainable.lora.alpha: must be above 0"),
        ("alpha: .inf", "trainable.lora.alpha: must be above 0"),
        ("targets: []", "trainable.lora.targets: must name at least one target"),
        ("targets: [attn]", "unknown value `attn`: did you mean `attention`?"),
        ("ranks: 4", "unknown key `ranks`: did you mean `rank`?"),
    ] {
        let found =
            problem("clip", &format!("objective: {{ contrastive: {{ trainable: {{ lora: {{ {lora} }} }} }} }}"));
        assert!(found.contains(expected), "{lora}: {found}");
    }
    let found = problem("xe", "contrastive: { trainable: projections }");
    assert!(found.contains("stages[1].contrastive: is for `objective: contrastive` only"), "{found}");
    assert_eq!(problem("dico", "objective: { dico: { reward: { pac_s: 1, missing_end: -0.1 } } }"), "");
    assert_eq!(problem("scst", "objective: { scst: { reward: { cider: 1, missing_end: -1 } } }"), "");
    let good = "evaluate_every: 3, metric: cider, patience: 3, \
                guard: [{ metric: kl, above: 0.5, for: 9, action: rollback }, { metric: rep_4, above: 0.9, action: pause }]";
    assert_eq!(problem("dico", good), "");
    assert_eq!(
        problem(
            "scst",
            "objective: { scst: { reward: { cider: 1, pac_s: 0.5 }, baseline: greedy, candidates: samples } }"
        ),
        ""
    );
}
