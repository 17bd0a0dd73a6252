namespace offload::test {

const char* device_name();
const char* device_name() { return "cpu"; }

} // namespace offload::test
