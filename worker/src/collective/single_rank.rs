//! The collective of a generation with one rank.

use tch::Tensor;

use super::{Collective, CollectiveError};

/// The collective of a single rank: operations do not change tensors.
pub struct SingleRankCollective;

impl Collective for SingleRankCollective {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &Tensor) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast(&self, _: &Tensor, _: usize) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
        Ok(vec![tensor.shallow_clone()])
    }
}
