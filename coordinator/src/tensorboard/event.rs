//! The messages of TensorFlow's `event.proto`, `summary.proto` and `tensor.proto` that the export
//! needs, with TensorFlow's field numbers. [`Tensor`] and [`TensorShape`] are `TensorProto` and
//! `TensorShapeProto`; the other messages have TensorFlow's names.

use prost::{Message, Oneof};

/// The version of event files. In files of this version, a START event purges later steps.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const SESSION_STATUS_START: i32 = 1;
/// `DataType.DT_STRING`.
const DATA_TYPE_STRING: i32 = 7;
/// `DataClass.DATA_CLASS_TENSOR`.
const DATA_CLASS_TENSOR: i32 = 2;

/// `Event`: the record of an event file, with its time and step.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(oneof = "EventContent", tags = "3, 5, 7")]
    pub(super) content: Option<EventContent>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum EventContent {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `Summary`: the values of a step.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) value: Vec<Value>,
}

/// `Summary.Value`: a value with its tag, which is the name of its curve in TensorBoard.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<SummaryMetadata>,
    #[prost(oneof = "ValueContent", tags = "2, 8")]
    pub(super) content: Option<ValueContent>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum ValueContent {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

/// `SummaryMetadata`: how TensorBoard shows a value.
#[derive(Clone, PartialEq, Message)]
struct SummaryMetadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
    #[prost(int32, tag = "4")]
    data_class: i32,
}

/// `SummaryMetadata.PluginData`: the plugin of TensorBoard that shows a value.
#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    /// A shape without dimensions: the tensor is a scalar.
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub(super) string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShape {}

/// `SessionLog`: marks the start of a program that writes the file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Event {
    /// The first event of a file.
    #[must_use]
    pub fn version(wall_time: f64) -> Self {
        Self { wall_time, step: 0, content: Some(EventContent::FileVersion(FILE_VERSION.to_owned())) }
    }

    /// A START event. It purges the values of this step and later ones.
    #[must_use]
    pub fn start(wall_time: f64, step: i64) -> Self {
        Self { wall_time, step, content: Some(EventContent::SessionLog(SessionLog { status: SESSION_STATUS_START })) }
    }

    /// An event with the values of a step.
    #[must_use]
    pub fn summary(wall_time: f64, step: i64, summary: Summary) -> Self {
        Self { wall_time, step, content: Some(EventContent::Summary(summary)) }
    }
}

impl Summary {
    /// A summary of these values.
    pub fn of(values: impl IntoIterator<Item = Value>) -> Self {
        Self { value: values.into_iter().collect() }
    }
}

impl Value {
    /// A scalar value.
    pub fn scalar(tag: impl Into<String>, value: f64) -> Self {
        // TensorBoard stores scalars in single precision.
        Self { tag: tag.into(), metadata: None, content: Some(ValueContent::SimpleValue(value as f32)) }
    }

    /// A text value, in Markdown.
    pub fn text(tag: impl Into<String>, text: String) -> Self {
        let plugin_data = Some(PluginData { plugin_name: "text".to_owned() });
        let tensor =
            Tensor { dtype: DATA_TYPE_STRING, shape: Some(TensorShape {}), string_val: vec![text.into_bytes()] };
        Self {
            tag: tag.into(),
            metadata: Some(SummaryMetadata { plugin_data, data_class: DATA_CLASS_TENSOR }),
            content: Some(ValueContent::Tensor(tensor)),
        }
    }
}
