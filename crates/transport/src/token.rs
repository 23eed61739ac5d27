use std::path::Path;

use subtle::ConstantTimeEq;

use crate::{Error, files};

/// The environment variable with the token of workers.
pub const JOIN_TOKEN: &str = "DICO_JOIN_TOKEN";
/// The environment variable with the token of operators.
pub const ADMIN_TOKEN: &str = "DICO_ADMIN_TOKEN";

/// Minimal length of a token in characters: shorter ones can be guessed.
pub(crate) const MIN_BYTES: usize = 16;
/// Maximal length of a token in characters: longer ones do not fit into a header.
pub(crate) const MAX_BYTES: usize = 1024;

/// Maximal size of a token's file, including white space, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The scheme in the header `authorization`.
const SCHEME: &str = "Bearer ";

/// A shared secret. It has no `Debug`, so that it cannot end up in a log.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token from a file, or else from an environment variable; none if neither is given.
    ///
    /// # Errors
    /// The file cannot be read, or the token is invalid.
    pub fn find(file: Option<&Path>, variable: &str) -> Result<Option<Self>, Error> {
        match (file, std::env::var_os(variable)) {
            (Some(path), _) => {
                let text = String::from_utf8(files::read_secret(path, MAX_FILE_BYTES)?);
                let text = text.map_err(|_| Error::NotText { path: path.to_owned() })?;
                Self::parse(&text, &path.display().to_string()).map(Some)
            }
            (None, Some(value)) => {
                Self::parse(&value.to_string_lossy(), &format!("environment variable {variable}")).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    /// Parses a token. Removes white space around it, and a leading byte-order mark.
    ///
    /// # Errors
    /// It is too short, too long, or has characters that a header cannot carry. `origin` names its
    /// source.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let text = text.trim_start_matches('\u{feff}').trim();
        if !(MIN_BYTES..=MAX_BYTES).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Token { origin: origin.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }

    /// Compares with a presented token. The duration reveals only whether the lengths differ.
    #[must_use]
    pub fn equals(&self, presented: &str) -> bool {
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }

    /// The value of the header `authorization`.
    pub(crate) fn authorization(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

/// The token in the value of a header `authorization`.
#[must_use]
pub fn bearer(authorization: &str) -> Option<&str> {
    authorization.strip_prefix(SCHEME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef";

    #[test]
    fn a_token_in_a_file_ends_before_the_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{GOOD}\n")).unwrap();
        let token = Token::find(Some(file.path()), "DICO_NO_SUCH_VARIABLE").unwrap().unwrap();
        assert!(token.equals(bearer(&token.authorization()).unwrap()));
        assert!(token.equals(GOOD) && !token.equals("0123456789abcdeF") && !token.equals(&GOOD[1..]));
        std::fs::write(file.path(), format!("\u{feff}{GOOD}\r\n")).unwrap();
        assert!(Token::find(Some(file.path()), "DICO_NO_SUCH_VARIABLE").unwrap().unwrap().equals(GOOD));
        assert!(Token::find(None, "DICO_NO_SUCH_VARIABLE").unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_a_token_is_refused_without_saying_what_it_was() {
        let long = "x".repeat(MAX_BYTES + 1);
        for text in ["", "0123456789abcde", "0123456789 abcdef", "0123456789äabcdef", long.as_str()] {
            let Err(error) = Token::parse(text, "token.txt").map(|_| ()) else { panic!("{text:?} is no token") };
            let error = error.to_string();
            assert!(error.starts_with("token.txt: ") && error.contains("openssl rand"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = || Token::find(Some(file.path()), JOIN_TOKEN).map(|_| ()).unwrap_err().to_string();
        std::fs::write(file.path(), format!("{GOOD}{}", " ".repeat(64 << 10))).unwrap();
        assert!(found().contains("more than 65536 bytes"), "{}", found());
        std::fs::write(file.path(), b"\xff0123456789abcdef").unwrap();
        assert!(found().contains("not text"), "{}", found());
        let missing = Token::find(Some(Path::new("/nowhere/token")), JOIN_TOKEN).map(|_| ()).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/token: "), "{missing}");
    }
}
