// hls::stream for C simulation: a queue without a bound, as in the vendor's C simulation, but strict.
//
// C simulation runs the processes of a DATAFLOW region one after the other, so a channel has to hold everything that
// its writer produces. Reading an empty channel, and words that nobody has read when a channel is destroyed, end the
// program with exit code 45: in hardware the first hangs, and the second corrupts the next call.
#ifndef HLS_STREAM_H
#define HLS_STREAM_H
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>

namespace hls {

// Channels that differ in depth can be bound to a stream<T>&, as in the vendor's header.
template <class T, int DEPTH = 0> class stream;

template <class T> class stream<T, 0> {
public:
    explicit stream(const char* name = "without a name") : name_(name) {}
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;
    ~stream() {
        if (!words_.empty()) fail("was destroyed with " + std::to_string(words_.size()) + " words that nobody read");
    }

    void write(const T& word) { words_.push_back(word); }
    bool write_nb(const T& word) {
        write(word);
        return true;
    }

    T read() {
        if (words_.empty()) fail("was read while it was empty");
        const T word = words_.front();
        words_.pop_front();
        return word;
    }
    void read(T& word) { word = read(); }
    bool read_nb(T& word) {
        if (empty()) return false;
        word = read();
        return true;
    }

    bool empty() const { return words_.empty(); }
    bool full() const { return false; }
    void operator>>(T& word) { word = read(); }
    void operator<<(const T& word) { write(word); }

private:
    std::deque<T> words_;
    std::string name_;

    void fail(const std::string& what) const {
        std::fflush(stdout);
        std::fprintf(stderr, "channel %s %s\n", name_.c_str(), what.c_str());
        std::_Exit(45);
    }
};

template <class T, int DEPTH> class stream : public stream<T, 0> {
public:
    explicit stream(const char* name = "without a name") : stream<T, 0>(name) {}
};

}  // namespace hls
#endif
