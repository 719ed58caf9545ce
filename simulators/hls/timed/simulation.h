// What instrumented sources call. The clock of a process advances where a pipelined loop starts an iteration, where a
// channel or a memory makes it wait, and where it uses the same port of a channel twice. In a pipelined loop words are
// written some stages behind the iteration that computes them: pipeline.h.
#ifndef MOEC_SIMULATION_H
#define MOEC_SIMULATION_H
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

namespace moec_simulation {

struct Process;

// The times, not the words, of a FIFO with one writer and one reader. A word can be read in the cycle behind the one it
// was written in, and its place can be written again in the cycle behind the one it was read in.
class Channel {
public:
    Channel(const char* name, int depth);
    ~Channel();
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    void set_depth(int depth);
    void begin_write();  // the word may still be on its way through the writer's pipeline when it returns
    void begin_read();
    bool is_empty();  // as the calling process sees it now, whatever the order in which processes are simulated
    bool is_full();

    void write_at(uint64_t time);  // the next word that is on its way arrives
    void free_place(uint64_t time);  // of the oldest word that was taken
    void settle();                 // words of pipelines that flush arrive as far as there are places
    uint64_t place_free_at() const;

    std::string name;
    uint64_t depth;
    uint64_t written = 0, taken = 0, read = 0;  // words so far: arrived, read, and those whose places are free again
    uint64_t on_their_way = 0;                  // words that were written and have not arrived
    uint64_t peak = 0;                          // words at once
    Process* writer = nullptr;
    Process* reader = nullptr;

    // Of pipelines that flush: when words can arrive at the earliest, and when they did, each with its iteration.
    struct Word {
        uint64_t iteration, time;
    };
    std::deque<Word> flushed, arrived;

private:
    std::vector<uint64_t> write_times_, read_times_;  // of the last words; word n is at n modulo their size
    uint64_t left_ = 0;                               // words that had been read when the last read one was written

    uint64_t& write_time(uint64_t word) { return write_times_[word & (write_times_.size() - 1)]; }
    uint64_t& read_time(uint64_t word) { return read_times_[word & (read_times_.size() - 1)]; }
    void measure(uint64_t word);
};

// A call of a function that runs regions one after the other; what else it calls is a region of one process. Its ports are
// those of all regions.
class Call {
public:
    Call();
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    template <class T> void memory(const char* bundle, const char* port, const T* start, uint64_t words) {
        add_memory(bundle, port, start, words * sizeof(T));
    }

private:
    void add_memory(const char* bundle, const char* port, const void* start, uint64_t bytes);
};

// The processes of one DATAFLOW region. `run` returns when all of them have.
class Region {
public:
    explicit Region(const char* name);
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

    // arguments: the text of what the process is called with.
    void add(const char* name, const char* arguments, std::function<void()> body);
    void run();

    // A port of the function that holds the region, through which `words` words can be reached.
    template <class T> void memory(const char* bundle, const char* port, const T* start, uint64_t words) {
        add_memory(bundle, port, start, words * sizeof(T));
    }

private:
    const std::string name_;

    void add_memory(const char* bundle, const char* port, const void* start, uint64_t bytes);
};

// An iteration of a pipelined loop starts. `written`: the streams that the loop writes, in the order of the code.
enum class Style { stp, frp, flp };
void start_iteration(Style style, int initiation_interval, Channel* const* written, int count);
template <class... Stream> void tick(Style style, int initiation_interval, Stream&... written) {
    Channel* const channels[] = {nullptr, &written.channel()...};
    start_iteration(style, initiation_interval, channels + 1, int(sizeof...(written)));
}

// The execution of a pipelined loop, or of loops around it that are flattened with it. `for (Loop loop(...); loop.enters();)` in front of a
// loop executes it once.
class Loop {
public:
    enum Kind { computes, uses_memory };
    explicit Loop(Kind kind);
    ~Loop();
    bool enters() { return !entered_ && (entered_ = true); }

private:
    bool entered_ = false;
};

void access_memory(const void* address, std::size_t bytes);

// A pointer to external memory: every access takes a beat.
template <class T> class Memory {
public:
    explicit Memory(T* start) : start_(start) {}
    template <class Index> T& operator[](const Index& index) const {
        T* word = start_ + static_cast<long long>(index);
        access_memory(word, sizeof(T));
        return *word;
    }

private:
    T* start_;
};

template <class T> Memory<T> memory(T* start) { return Memory<T>(start); }

void declare_independent(const char* name, const void* start, std::size_t bytes, std::size_t element, uint64_t distance);

// DEPENDENCE variable=... inter: an iteration of the loop that reads what one of the `distance` - 1 iterations before it
// wrote is an error; 0 stands for all iterations before it. Accesses are seen where the compiler calls
// ThreadSanitizer's functions for them.
template <class T> void independent(const char* name, const T& variable, uint64_t distance) {
    static_assert(!std::is_pointer<T>::value, "DEPENDENCE of a parameter: its size is not known; declare it where the array is");
    declare_independent(name, &variable, sizeof(T), sizeof(typename std::remove_all_extents<T>::type), distance);
}

}  // namespace moec_simulation
#endif
