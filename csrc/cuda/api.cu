// The C ABI of the library itself: its version, its last error, the devices that it can run on.
#include "check.h"

using namespace ffncore::cuda;

#define FFNCORE_TEXT(number) #number
#define FFNCORE_VERSION_TEXT(major, minor, patch)                                                  \
    FFNCORE_TEXT(major) "." FFNCORE_TEXT(minor) "." FFNCORE_TEXT(patch)

const char *ffncore_cuda_version(void) {
    return FFNCORE_VERSION_TEXT(FFNCORE_VERSION_MAJOR, FFNCORE_VERSION_MINOR,
                                FFNCORE_VERSION_PATCH);
}

const char *ffncore_cuda_last_error(void) { return sentence(); }

ffncore_status ffncore_cuda_devices(int32_t *count) {
    return guarded([&] {
        FFNCORE_REQUIRE(count, "count is NULL");
        int devices = 0, usable = 0;
        const cudaError_t error = cudaGetDeviceCount(&devices);
        if (error != cudaSuccess)
            refuse(FFNCORE_UNSUPPORTED, "there is no NVIDIA GPU that works with this driver: %s",
                   cudaGetErrorString(error));
        constexpr int kLeastMajor = 8; // cp.async, mma.sync of bfloat16
        for (int i = 0; i < devices; ++i) {
            int major = 0;
            require_success(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i));
            usable += major >= kLeastMajor;
        }
        if (usable == 0)
            refuse(FFNCORE_UNSUPPORTED,
                   "none of the %d GPUs here has compute capability 8.0 or later", devices);
        *count = usable;
    });
}
