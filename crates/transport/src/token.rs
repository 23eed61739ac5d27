use std::path::Path;

use subtle::ConstantTimeEq;

use crate::{Error, files};

/// The environment variable with the join token.
pub const JOIN_TOKEN_VARIABLE: &str = "DICO_JOIN_TOKEN";
/// The environment variable with the admin token.
pub const ADMIN_TOKEN_VARIABLE: &str = "DICO_ADMIN_TOKEN";

/// Minimal length of a token in bytes: shorter ones can be guessed.
pub(crate) const MIN_TOKEN_BYTES: usize = 16;
/// Maximal length of a token in bytes: a header with it stays far below common limits (8 KiB).
pub(crate) const MAX_TOKEN_BYTES: usize = 1024;

/// Maximal size of a token's file, including white space, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The scheme of the header `authorization`.
const SCHEME: &str = "Bearer ";

/// A shared secret. It has no `Debug`, so that it cannot end up in a log.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token from a file, or else from an environment variable; none if neither is given.
    ///
    /// # Errors
    /// The file cannot be read, is larger than 64 KiB or not UTF-8, or the token is invalid.
    pub fn load(file: Option<&Path>, variable: &str) -> Result<Option<Self>, Error> {
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
    /// The token has fewer than 16 or more than 1,024 bytes, or characters other than printable
    /// ASCII; the message names `origin`, its source.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let text = text.trim_start_matches('\u{feff}').trim();
        if !(MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&text.len())
            || !text.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(Error::Token { origin: origin.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether the token equals `presented`, the token of a client. The duration of the comparison
    /// reveals only whether the lengths differ.
    #[must_use]
    pub fn matches(&self, presented: &str) -> bool {
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }

    /// The value of the header `authorization` that carries this token.
    pub(crate) fn authorization(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

/// The token in the value of a header `authorization`; none if its scheme is not `Bearer`.
#[must_use]
pub fn parse_bearer(authorization: &str) -> Option<&str> {
    authorization.strip_prefix(SCHEME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "0123456789abcdef";

    #[test]
    fn white_space_around_a_token_in_a_file_is_ignored() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{VALID}\n")).unwrap();
        let token = Token::load(Some(file.path()), "DICO_NO_SUCH_VARIABLE").unwrap().unwrap();
        assert!(token.matches(parse_bearer(&token.authorization()).unwrap()));
        assert!(token.matches(VALID) && !token.matches("0123456789abcdeF") && !token.matches(&VALID[1..]));
        std::fs::write(file.path(), format!("\u{feff}{VALID}\r\n")).unwrap();
        assert!(Token::load(Some(file.path()), "DICO_NO_SUCH_VARIABLE").unwrap().unwrap().matches(VALID));
        assert!(Token::load(None, "DICO_NO_SUCH_VARIABLE").unwrap().is_none());
    }

    #[test]
    fn an_invalid_token_is_refused_without_printing_it() {
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        for text in ["", "0123456789abcde", "0123456789 abcdef", "0123456789äabcdef", long.as_str()] {
            let Err(error) = Token::parse(text, "token.txt").map(|_| ()) else { panic!("{text:?} is accepted") };
            let error = error.to_string();
            assert!(error.starts_with("token.txt: ") && error.contains("openssl rand"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = || Token::load(Some(file.path()), JOIN_TOKEN_VARIABLE).map(|_| ()).unwrap_err().to_string();
        std::fs::write(file.path(), format!("{VALID}{}", " ".repeat(64 << 10))).unwrap();
        assert!(error().contains("more than 65536 bytes"), "{}", error());
        std::fs::write(file.path(), b"\xff0123456789abcdef").unwrap();
        assert!(error().contains("not text"), "{}", error());
        let missing =
            Token::load(Some(Path::new("/nowhere/token")), JOIN_TOKEN_VARIABLE).map(|_| ()).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/token: "), "{missing}");
    }
}
