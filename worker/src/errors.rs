//! Error messages that include the causes of an error.

/// The message of an error and the messages of its causes, in one line. A cause that an earlier
/// message includes already is not repeated.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for message in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = message;
        } else if !line.contains(&message) {
            line = format!("{line}: {message}");
        }
    }
    line.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let error = anyhow!("disk full").context("a.json: disk full").context("cannot export\nthe model");
        assert_eq!(one_line(&error), "cannot export the model: a.json: disk full");
    }
}
