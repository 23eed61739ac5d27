//! `coordinator schema`: the keys of run files, for editors and for people.

use std::io::Write;

use clap::Args;

/// Print the JSON Schema of run files, for editors.
///
/// An editor with a YAML language server completes and checks run files with it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator schema > run-file.schema.json")]
pub struct SchemaCommand {
    /// Print the reference for people instead: docs/run-file.md.
    #[arg(long)]
    markdown: bool,
}

impl SchemaCommand {
    /// Prints it.
    pub fn run(self) -> anyhow::Result<()> {
        let text = if self.markdown {
            config::reference()
        } else {
            format!("{}\n", serde_json::to_string_pretty(&config::schema_json())?)
        };
        cli_support::out().write_all(text.as_bytes())?;
        Ok(())
    }
}
