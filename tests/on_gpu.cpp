namespace offload::test {

const char* device_name();
const char* device_name() { return "cuda:0"; }

} // namespace offload::test
