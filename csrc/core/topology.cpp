// How many cores this process may use, and the size of a core's L2 cache; see cpu.h.
//
// Hardware threads of one core share its FMA units, so a second one gains nothing. Therefore the
// distinct cores among the CPUs of the affinity mask are counted. A container is further limited by
// the quota of its cgroup (microseconds of CPU time in a period) or of any ancestor. A quota of 2.5
// CPUs gives three threads.
#include "cpu.h"

#include <thread>

#if defined(__linux__)
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sched.h>
#include <set>
#include <unistd.h>
#include <vector>
#endif

namespace ffncore {
namespace {

constexpr int64_t kTypicalL2 = int64_t(1) << 20; // between 256 KiB (2015) and 2 MiB (2023)

#if defined(__linux__)
// The contents of a small file, or "".
std::string contents(const std::string &path) {
    std::string text;
    if (FILE *const file = std::fopen(path.c_str(), "re")) {
        char buffer[4096];
        size_t got = 0;
        while ((got = std::fread(buffer, 1, sizeof buffer, file)) > 0) text.append(buffer, got);
        std::fclose(file);
    }
    return text;
}

std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
    // The kernel refuses a mask that is smaller than its own, so larger ones are tried.
    for (int bits = 1024; bits <= 1 << 20; bits *= 4) {
        cpu_set_t *const mask = CPU_ALLOC(bits);
        if (mask == nullptr) break;
        const size_t bytes = CPU_ALLOC_SIZE(bits);
        const bool known = sched_getaffinity(0, bytes, mask) == 0;
        for (int cpu = 0; known && cpu < bits; ++cpu) {
            if (CPU_ISSET_S(cpu, bytes, mask)) cpus.push_back(cpu);
        }
        CPU_FREE(mask);
        if (known) break;
    }
    return cpus;
}

// A core is named by the list of its hardware threads. The file has an older name, which is tried
// second.
std::string core_of(int cpu) {
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::string siblings = contents(folder + "core_cpus_list");
    if (siblings.empty()) siblings = contents(folder + "thread_siblings_list");
    return siblings.empty() ? "cpu " + std::to_string(cpu) : siblings;
}

// The CPUs that a quota and its period allow, rounded up; 0: no limit.
int cpus_of(const std::string &quota, const std::string &period) {
    const double q = std::atof(quota.c_str()); // "max" and "-1" are no limit
    const double p = std::atof(period.c_str());
    if (!(q > 0) || !(p > 0) || q / p > 1e6) return 0;
    const int whole = int(q / p);
    return std::max(1, whole + (double(whole) * p < q));
}

int quota_v2(const std::string &folder) { // cpu.max: "200000 100000"
    const std::string text = contents(folder + "/cpu.max");
    const size_t space = text.find(' ');
    return space == std::string::npos ? 0 : cpus_of(text.substr(0, space), text.substr(space));
}

int quota_v1(const std::string &folder) {
    return cpus_of(contents(folder + "/cpu.cfs_quota_us"), contents(folder + "/cpu.cfs_period_us"));
}

// The smallest quota from `path` up to `root`. Inside a container, the path may be that of the host
// and not exist here; the walk then ends at the root, which is the group of the container.
int least_quota(const std::string &root, std::string path, int (*quota)(const std::string &)) {
    int least = 0;
    for (;;) {
        if (path == "/") path.clear();
        const int here = quota(root + path);
        if (here > 0 && (least == 0 || here < least)) least = here;
        const size_t slash = path.rfind('/');
        if (path.empty() || slash == std::string::npos) return least;
        path.erase(slash);
    }
}

bool names_cpu(const std::string &controllers) { // "cpu,cpuacct", but not "cpuset"
    return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

int cgroup_quota() {
    int least = 0;
    const auto take = [&](int quota) {
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
    };
    const std::string groups = contents("/proc/self/cgroup"); // lines "id:controllers:path"
    for (size_t at = 0; at < groups.size();) {
        const size_t end = std::min(groups.find('\n', at), groups.size());
        const std::string line = groups.substr(at, end - at);
        at = end + 1;
        const size_t first = line.find(':');
        const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string path = line.substr(second + 1);
        if (controllers.empty()) take(least_quota("/sys/fs/cgroup", path, quota_v2));
        if (names_cpu(controllers)) take(least_quota("/sys/fs/cgroup/cpu", path, quota_v1));
    }
    return least;
}

int count_cores() {
    std::set<std::string> cores;
    for (const int cpu : allowed_cpus()) cores.insert(core_of(cpu));
    int n = cores.empty() ? int(std::thread::hardware_concurrency()) : int(cores.size());
    const int quota = cgroup_quota();
    if (quota > 0) n = std::min(n, quota);
    return std::max(1, n);
}

// Bytes of the cache that sysfs has under this name, or that sysconf tells; 0 if unknown.
int64_t look_up_cache(const char *index, int name) {
    // sysfs comes first, because sysconf asks cpuid, which in a virtual machine may not know.
    const std::string text =
        contents(std::string("/sys/devices/system/cpu/cpu0/cache/") + index + "/size"); // "2048K"
    const int64_t kib = std::atoll(text.c_str());
    if (kib > 0 && text.find('K') != std::string::npos) return kib << 10;
    return std::max<int64_t>(sysconf(name), 0);
}

int64_t look_up_l2() {
    const int64_t bytes = look_up_cache("index2", _SC_LEVEL2_CACHE_SIZE);
    return bytes > 0 ? bytes : kTypicalL2;
}

int64_t look_up_l3() { return look_up_cache("index3", _SC_LEVEL3_CACHE_SIZE); }
#else
int count_cores() {
    const int n = int(std::thread::hardware_concurrency());
    return n > 0 ? n : 1;
}

int64_t look_up_l2() { return kTypicalL2; }
int64_t look_up_l3() { return 0; }
#endif

} // namespace

int physical_cores() {
    static const int n = count_cores();
    return n;
}

int64_t l2_bytes() {
    static const int64_t bytes = look_up_l2();
    return bytes;
}

int64_t l3_bytes() {
    static const int64_t bytes = look_up_l3();
    return bytes;
}

} // namespace ffncore
