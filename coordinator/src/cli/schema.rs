//! `coordinator schema`: the reference of run files, as JSON Schema or Markdown.

use std::io::Write;

use clap::Args;

/// Print the JSON Schema of run files.
///
/// Editors with a YAML language server use it to complete and check run files.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator schema > run-file.schema.json")]
pub struct SchemaCommand {
    /// Print the reference as Markdown (docs/run-file.md) instead.
    #[arg(long)]
    markdown: bool,
}

impl SchemaCommand {
    /// Prints the schema or the reference.
    pub fn run(self) -> anyhow::Result<()> {
        let text = if self.markdown {
            config::reference()
        } else {
            format!("{}\n", serde_json::to_string_pretty(&config::schema_json())?)
        };
        cli_support::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}
