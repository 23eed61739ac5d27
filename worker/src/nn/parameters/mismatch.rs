//! The error of tensors that do not fit a model.

/// Named tensors do not fit a model's parameters; lists all differences.
#[derive(Debug, Default)]
pub struct ParameterMismatchError {
    /// The parameters for which there is no tensor.
    pub(super) missing: Vec<String>,
    /// The tensors for which there is no parameter.
    pub(super) extra: Vec<String>,
    /// The tensors whose shape differs from the parameter's, with both shapes.
    pub(super) wrong_shape: Vec<String>,
}

impl ParameterMismatchError {
    pub(super) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.wrong_shape.is_empty()
    }
}

impl std::error::Error for ParameterMismatchError {}

impl std::fmt::Display for ParameterMismatchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [("missing", &self.missing), ("extra", &self.extra), ("misshapen", &self.wrong_shape)];
        let mut separator = "";
        for (difference, names) in parts.iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "{separator}{difference}: {}", names.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}
