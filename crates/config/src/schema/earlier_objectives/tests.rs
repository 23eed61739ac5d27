use std::path::Path;

use crate::RunFile;

const RUN: &str = "name: a\noutput: runs/a\nworkers: { min: 1, max: 1 }\n\
    data: { karpathy: { annotations: a.json, images: images } }\ncaptioner: { weights: folder }\n\
    evaluator: { weights: clip.pt }\nstages:\n";
const OTHERS: &str = "steps: 1, batch: 1, optimizer: { learning_rate: 1.0e-5 } }\n";

fn text(objective: &str) -> String {
    format!("{RUN}- {{ name: a, {objective}, {OTHERS}")
}

fn parse(objective: &str) -> Result<(RunFile, Vec<String>), String> {
    let parsed = RunFile::parse_with_warnings(Path::new("run.yaml"), &text(objective));
    let (run, warnings) = parsed.map_err(|error| error.to_string())?;
    Ok((run, warnings.iter().map(ToString::to_string).collect()))
}

#[test]
fn earlier_settings_give_the_same_run_with_a_warning_at_their_key() {
    let lora = "{ trainable: { lora: { rank: 8 } } }";
    for (name, settings) in
        [("dico", "{ beta: 0.1, reward: { cider: 1 } }"), ("scst", "{ baseline: greedy }"), ("contrastive", lora)]
    {
        let (now, others) = parse(&format!("objective: {{ {name}: {settings} }}")).unwrap();
        for earlier in [
            format!("objective: {name}, {name}: {settings}"),
            format!("{name}: {settings}, objective: {name}"),
            format!("objective: {{ {name}: {{}} }}, {name}: {settings}"),
        ] {
            let (run, warnings) = parse(&earlier).unwrap();
            assert_eq!(run, now, "{earlier}");
            let added: Vec<_> = warnings.iter().filter(|warning| !others.contains(warning)).collect();
            assert_eq!(added.len(), 1, "{warnings:?}");
            let column = text(&earlier).lines().last().unwrap().find(&format!("{name}: {settings}")).unwrap() + 1;
            let start = format!("run.yaml:8:{column}: stages[0].objective.{name}: ");
            assert!(added[0].starts_with(&start), "{added:?}");
            assert!(added[0].ends_with(&format!("write `objective: {{ {name}: {{ ... }} }}`")), "{added:?}");
        }
    }
}

#[test]
fn an_error_in_earlier_settings_has_its_position() {
    for (earlier, expected) in [
        ("objective: dico, dico: { beta: 0 }", "run.yaml:8:45: stages[0].objective.dico.beta: must be above 0"),
        ("objective: dico, dico: { beat: 1 }", "run.yaml:8:39: unknown key `beat`: did you mean `beta`?"),
        ("objective: dico, scst: { baseline: greedy }", "run.yaml:8:31: stages[0].scst: is for `objective: scst` only"),
        (
            "objective: { dico: { beta: 0.1 } }, dico: { tau: 1 }",
            "run.yaml:8:50: stages[0].dico: has settings of the objective, and `objective` has some, too",
        ),
    ] {
        let found = parse(earlier).unwrap_err();
        assert!(found.starts_with(expected), "{earlier}: {found}");
    }
}

#[test]
fn journals_of_the_last_version_are_read() {
    let (run, _) = parse("objective: { dico: { beta: 0.1 } }").unwrap();
    let json = serde_json::to_string(&run).unwrap();
    let dico = r#"{"beta":0.1,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}}"#;
    let objective = format!(r#""objective":{{"dico":{dico}}}"#);
    assert!(json.contains(&objective), "{json}");
    // All settings were written, those of other objectives with their defaults.
    let earlier = format!(
        r#""objective":"dico","contrastive":{{"generated_images":0.0,"generated_captions":0.0,"trainable":"all"}},"dico":{dico},"scst":{{"reward":{{"pac_s":1.0}},"baseline":"mean","candidates":"beams"}}"#
    );
    let earlier = json.replace(&objective, &earlier);
    // A journal's run file is read without the checks of `from_json`.
    assert_eq!(serde_json::from_str::<RunFile>(&earlier).unwrap(), run);
    assert_eq!(RunFile::from_json(&earlier), Ok(run));
}
