//! Health checks, status, `watch`, `report`, `tensorboard` and completions, and the version check
//! of the protocol.

use std::io::{Read, Write};
use std::net::TcpStream;

use test_support::{Coordinator, Process, Workspace, command, run};

/// Sends a GET request. Returns the response, with its headers.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn a_waiting_run_is_healthy_but_not_ready() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 1, ""));
    assert!(get(&coordinator.http_address, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(&coordinator.http_address, "/readyz").starts_with("HTTP/1.1 503"));
    assert!(get(&coordinator.http_address, "/metrics").contains("dico_members 0"));
    let status = run("coordinator", &["status", "--coordinator", &coordinator.url, "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["run"], &status["state"]), (&"test".into(), &"waiting".into()));
    let worker = coordinator.start_worker(&workspace, 0);
    assert!(worker.succeeds());
    assert!(coordinator.process.succeeds());
}

#[test]
fn another_protocol_version_is_refused_with_an_error_that_names_both_versions() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 1, ""));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refusal = runtime.block_on(async {
        let client = proto::v1::coordinator_client::CoordinatorClient::connect(coordinator.url.clone());
        let request = proto::v1::JoinRequest { protocol_version: 9999, ..Default::default() };
        client.await.unwrap().join(request).await.unwrap_err()
    });
    assert_eq!(refusal.code(), tonic::Code::FailedPrecondition);
    let own = proto::PROTOCOL_VERSION.to_string();
    assert!(refusal.message().contains("9999") && refusal.message().contains(&own), "{refusal}");
}

#[test]
fn watch_report_and_tensorboard_show_a_run() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let coordinator = Coordinator::start(&workspace, &run_file);
    let watch = ["watch", "--coordinator", &coordinator.url, "--interval", "0.05", "--give-up-after", "60"];
    // Without a terminal, `watch` prints lines.
    let mut lines = Process::start(command("coordinator").args(watch), workspace.path("watch.log"));
    assert!(
        lines.read_line().contains("waiting (0 of at least 1 workers are attached), stage 0 (evaluator), step 0 of 4")
    );
    let mut objects = Process::start(command("coordinator").args(watch).arg("--json"), workspace.path("objects.log"));
    let object: serde_json::Value = serde_json::from_str(&objects.read_line()).unwrap();
    assert_eq!((&object["status"]["run"], object.get("problem")), (&"test".into(), None));
    let worker = coordinator.start_worker(&workspace, 0);
    assert!(worker.succeeds() && coordinator.process.succeeds());

    let config = run_file.to_string_lossy();
    let [page, events] = ["report.html", "events"].map(|name| workspace.path(name).to_string_lossy().into_owned());
    let output = run("coordinator", &["report", "--config", &config, "--out", &page]);
    assert!(output.status.success(), "{output:?}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("finished") && page.contains("data:image/jpeg;base64,"), "no outcome or no images");
    let report = run("coordinator", &["report", "--config", &config, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["outcome"]["state"], &report["audit"]["clean"]), (&"finished".into(), &true.into()));
    // The run is finished, so `--follow` ends at once.
    let output = run("coordinator", &["tensorboard", "--config", &config, "--out", &events, "--follow", "--json"]);
    let written: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(written["steps"], 14);
    assert!(std::fs::metadata(written["file"].as_str().unwrap()).unwrap().len() > 1_000);
}

#[test]
fn both_programs_print_completions_for_all_shells() {
    for (program, subcommand) in [("coordinator", "tensorboard"), ("worker", "synthesize")] {
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let script = run(program, &["completions", shell]);
            let text = String::from_utf8_lossy(&script.stdout);
            assert!(script.status.success() && text.contains(subcommand), "{program}, {shell}: {script:?}");
        }
    }
}
