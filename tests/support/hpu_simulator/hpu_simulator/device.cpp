// A CPU-backed `hpu` device: PyTorch's own HPU device type, registered over host memory.
//
// Every operator runs PyTorch's CPU kernel. What is modelled beside the numbers is what Gaudi punishes:
// mixed devices are refused, and operators are recorded until the graph is cut (mark_step, or a value that
// the host reads). A cut graph whose operators, shapes or integer arguments were not seen before counts as
// one compilation. In eager mode every operator is a graph of its own.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <chrono>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace {

constexpr auto kDevice = c10::DeviceType::HPU;
const c10::Device kHpu(kDevice, 0);

// ---------------------------------------------------------------- statistics

struct Statistics {
  std::mutex mutex;
  int64_t in_use = 0, peak = 0;                              // bytes
  int64_t items = 0, to_host = 0, to_device = 0, ops = 0;    // counts
  int64_t dynamic = 0;                                       // operators whose output shape depends on values
  int64_t runs = 0;                                          // graphs executed
  size_t pending = 0;                                        // hash of the operators since the last cut
  int64_t pending_ops = 0;
  bool lazy = true;
  std::unordered_set<size_t> compiled;
  std::unordered_map<std::string, int64_t> fallbacks;        // operators run, by name

  void cut() {
    if (pending_ops == 0) return;
    compiled.insert(pending);
    ++runs;
    pending = 0;
    pending_ops = 0;
  }
};

// Never destroyed: tensors may be freed after static destructors have run.
Statistics& statistics() {
  static auto* instance = new Statistics();
  return *instance;
}

// Copies that a CPU kernel's own run needs are not the program's.
thread_local int inside_fallback = 0;
struct InsideFallback {
  InsideFallback() { ++inside_fallback; }
  ~InsideFallback() { --inside_fallback; }
};

size_t mixed(size_t seed, size_t value) {
  return seed ^ (value + 0x9e3779b97f4a7c15ULL + (seed << 6) + (seed >> 2));
}

size_t hashed(size_t seed, const at::Tensor& tensor) {
  if (!tensor.defined()) return mixed(seed, 1);
  seed = mixed(seed, static_cast<size_t>(tensor.scalar_type()));
  for (auto size : tensor.sizes()) seed = mixed(seed, static_cast<size_t>(size) + 17);
  return mixed(seed, 3);
}

size_t hashed(size_t seed, at::IntArrayRef values) {
  for (auto value : values) seed = mixed(seed, static_cast<size_t>(value));
  return mixed(seed, 5);
}

void record(size_t hash, const std::string& name) {
  auto& s = statistics();
  std::lock_guard<std::mutex> lock(s.mutex);
  ++s.ops;
  ++s.fallbacks[name];
  s.pending = mixed(s.pending, hash);
  ++s.pending_ops;
  if (!s.lazy) s.cut();
}

size_t named(const char* name) { return std::hash<std::string>{}(name); }

// ---------------------------------------------------------------- memory

struct HostAllocator final : c10::Allocator {
  static constexpr size_t kHeader = 64;  // keeps alloc_cpu's alignment

  c10::DataPtr allocate(size_t bytes) override {
    void* base = c10::alloc_cpu(bytes + kHeader);
    *static_cast<size_t*>(base) = bytes;
    auto& s = statistics();
    std::lock_guard<std::mutex> lock(s.mutex);
    s.in_use += static_cast<int64_t>(bytes);
    s.peak = std::max(s.peak, s.in_use);
    void* data = static_cast<char*>(base) + kHeader;
    return {data, data, &release, kHpu};
  }

  static void release(void* data) {
    if (data == nullptr) return;
    void* base = static_cast<char*>(data) - kHeader;
    {
      auto& s = statistics();
      std::lock_guard<std::mutex> lock(s.mutex);
      s.in_use -= static_cast<int64_t>(*static_cast<size_t*>(base));
    }
    c10::free_cpu(base);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, std::size_t count) const override {
    default_copy_data(target, source, count);
  }
};

HostAllocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::HPU, &allocator)

// ---------------------------------------------------------------- device, stream, events

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return kHpu; }
  c10::Device getDevice() const override { return kHpu; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() <= 0, "The simulated hpu has one device per process; asked for ", device);
  }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}

  using Moment = std::chrono::steady_clock::time_point;
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr) *event = new Moment();
    *static_cast<Moment*>(*event) = std::chrono::steady_clock::now();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Moment*>(event); }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    auto span = *static_cast<Moment*>(second) - *static_cast<Moment*>(first);
    return std::chrono::duration<double, std::milli>(span).count();
  }

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kHpu); }
};

C10_REGISTER_GUARD_IMPL(HPU, Guard)

}  // namespace

namespace at {

struct HPUHooks final : HPUHooksInterface {
  explicit HPUHooks(HPUHooksArgs) {}
  void init() const override {}
  bool hasHPU() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return kHpu; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  // The CPU's generators: dropout draws the same numbers as on the CPU.
  const Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex) const override { return at::make_generator<CPUGeneratorImpl>(); }
};

REGISTER_HPU_HOOKS(HPUHooks);

}  // namespace at

namespace {

// ---------------------------------------------------------------- tensors

at::Tensor cpu_alias(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  auto options = tensor.options().device(at::kCPU).requires_grad(false);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  auto owner = tensor.detach();
  auto alias = at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(), [owner](void*) {}, options);
  // What is conjugated or negated lazily is so only by these bits.
  alias._set_conj(tensor.is_conj());
  alias._set_neg(tensor.is_neg());
  return alias;
}

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::HPU);

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, c10::dtype_or_default(dtype));
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  auto hash = hashed(hashed(hashed(named("as_strided"), self), size), stride);
  record(mixed(hash, static_cast<size_t>(offset.value_or(-1))), "as_strided");
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage source) {
  auto size = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {size}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Tensor& set_nothing(at::Tensor& self) {
  at::Storage storage(c10::Storage::use_byte_size_t(), 0, allocator.allocate(0), &allocator, true);
  return set_storage(self, std::move(storage), 0, {0}, {});
}

void count_copy(const at::Tensor& self, const at::Tensor& target) {
  if (inside_fallback) return;
  if (self.is_hpu() && target.is_hpu()) {
    record(hashed(hashed(named("copy"), self), target), "copy");
    return;
  }
  auto& s = statistics();
  std::lock_guard<std::mutex> lock(s.mutex);
  if (self.is_hpu()) {
    ++s.to_host;
    s.cut();  // the host needs the values: what was recorded so far must run
  } else {
    ++s.to_device;
  }
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool) {
  count_copy(self, target);
  cpu_alias(target).copy_(cpu_alias(self));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  if (target.sizes() != self.sizes()) target.resize_(self.sizes());
  return copy_from(self, target, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  if (!inside_fallback) {
    auto& s = statistics();
    std::lock_guard<std::mutex> lock(s.mutex);
    ++s.items;
    s.cut();
  }
  return cpu_alias(self).item();
}

void record_stream(at::Tensor&, at::Stream) {}

at::Tensor to_hpu(const at::Tensor& tensor) {
  InsideFallback inside;
  return tensor.defined() ? tensor.to(kHpu) : tensor;
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  record(hashed(hashed(hashed(named("convolution"), input), weight), stride), "convolution");
  std::optional<at::Tensor> own_bias;
  if (bias.has_value() && bias->defined()) own_bias = cpu_alias(*bias);
  return to_hpu(at::convolution(cpu_alias(input), cpu_alias(weight), own_bias, stride, padding, dilation, transposed,
                                output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> mask) {
  record(hashed(hashed(hashed(named("convolution_backward"), gradient), input), weight), "convolution_backward");
  auto channels = std::vector<int64_t>{transposed ? weight.size(1) * groups : weight.size(0)};
  auto [a, b, c] = at::convolution_backward(cpu_alias(gradient), cpu_alias(input), cpu_alias(weight), channels, stride,
                                            padding, dilation, transposed, output_padding, groups, mask);
  return {to_hpu(a), to_hpu(b), to_hpu(c)};
}

// ---------------------------------------------------------------- everything else

struct Arguments {
  size_t hash;
  bool on_hpu = false;
  std::string on_host;  // the first tensor that may not be there

  void add(const at::Tensor& tensor, bool host_allowed) {
    hash = hashed(hash, tensor);
    if (!tensor.defined()) return;
    on_hpu |= tensor.is_hpu();
    if (tensor.is_cpu() && tensor.dim() > 0 && !host_allowed) on_host = "a CPU tensor";
  }

  void add(const c10::IValue& value, bool indices_on_host) {
    if (value.isTensor()) {
      add(value.toTensor(), false);
    } else if (value.isTensorList()) {
      for (const auto& tensor : value.toTensorVector()) add(tensor, false);
    } else if (value.isList() && value.toListRef().size() && !value.isIntList() && !value.isDoubleList()) {
      for (const auto& item : value.toListRef()) {
        if (item.isTensor()) add(item.toTensor(), indices_on_host);
      }
    } else if (value.isIntList()) {
      hash = hashed(hash, value.toIntVector());
    } else if (value.isInt()) {
      hash = mixed(hash, static_cast<size_t>(value.toInt()));
    } else if (value.isBool()) {
      hash = mixed(hash, value.toBool() ? 11 : 13);
    }
    // Floats are graph inputs, not part of the graph: a learning rate does not recompile.
  }
};

// The size of what these return is only known once they have run, so the host waits for it.
bool has_dynamic_shape(const std::string& name, const torch::jit::Stack& stack, size_t count) {
  static const std::unordered_set<std::string> always = {
      "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim",
      "aten::_unique", "aten::bincount"};
  if (always.count(name)) return true;
  if (name == "aten::repeat_interleave") return true;
  if (name != "aten::index") return false;
  const auto indices = torch::jit::last(stack, count)[1];
  for (const auto& item : indices.toListRef()) {
    if (item.isTensor() && item.toTensor().defined() &&
        (item.toTensor().scalar_type() == at::kBool || item.toTensor().scalar_type() == at::kByte))
      return true;
  }
  return false;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  const bool indexing = name.rfind("aten::index", 0) == 0 || name == "aten::_index_put_impl_";
  Arguments seen{std::hash<std::string>{}(name)};
  const auto count = op.schema().arguments().size();
  for (const auto& value : torch::jit::last(*stack, count)) seen.add(value, indexing);
  TORCH_CHECK(!(seen.on_hpu && !seen.on_host.empty()), name,
              ": expected all tensors on hpu:0, but found ", seen.on_host, " among the arguments");
  record(seen.hash, name);
  if (has_dynamic_shape(name, *stack, count)) {
    auto& s = statistics();
    std::lock_guard<std::mutex> lock(s.mutex);
    ++s.dynamic;
    s.cut();
  }
  InsideFallback inside;
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, HPU, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", [](const at::Tensor& self, at::IntArrayRef size) { return at::native::view(self, size); });
  m.impl("_reshape_alias", [](const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
  });
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_", &set_nothing);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("record_stream", &record_stream);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

// Copies read the bits of lazy conjugation and negation; PyTorch would resolve these first, by a copy.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

// ---------------------------------------------------------------- autocast

TORCH_LIBRARY_IMPL(_, AutocastHPU, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

#define KERNEL_HPU_LOW(...) KERNEL(c10::DeviceType::HPU, __VA_ARGS__, lower_precision_fp)
#define KERNEL_HPU_FP32(...) KERNEL(c10::DeviceType::HPU, __VA_ARGS__, fp32)
#define KERNEL_HPU_PROMOTE(...) KERNEL(c10::DeviceType::HPU, __VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(aten, AutocastHPU, m) {
  AT_FORALL_LOWER_PRECISION_FP(KERNEL_HPU_LOW)
  AT_FORALL_FP32(KERNEL_HPU_FP32)
  AT_FORALL_PROMOTE(KERNEL_HPU_PROMOTE)
}

// ---------------------------------------------------------------- what Python calls

TORCH_LIBRARY(hpu_simulator, m) {
  // For collectives: the same memory as a CPU tensor.
  m.def("cpu_alias(Tensor(a) self) -> Tensor(a)");
}
TORCH_LIBRARY_IMPL(hpu_simulator, HPU, m) { m.impl("cpu_alias", &cpu_alias); }
TORCH_LIBRARY_IMPL(hpu_simulator, CPU, m) { m.impl("cpu_alias", &cpu_alias); }

}  // namespace

extern "C" {

void hpu_simulator_mark_step() {
  auto& s = statistics();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.cut();
}

void hpu_simulator_set_lazy(int lazy) {
  auto& s = statistics();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.lazy = lazy != 0;
}

void hpu_simulator_reset_peak() {
  auto& s = statistics();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.peak = s.in_use;
}

// in use, peak, .item() calls, copies to host, copies to device, operators, graphs run, graphs compiled, dynamic shapes
void hpu_simulator_read(int64_t* values) {
  auto& s = statistics();
  std::lock_guard<std::mutex> lock(s.mutex);
  const int64_t read[] = {s.in_use,    s.peak, s.items, s.to_host,
                          s.to_device, s.ops,  s.runs,  static_cast<int64_t>(s.compiled.size()),
                          s.dynamic};
  std::copy(std::begin(read), std::end(read), values);
}
}
