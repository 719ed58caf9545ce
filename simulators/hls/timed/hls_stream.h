// hls::stream for the timed simulation: a FIFO of the declared depth, between two processes with clocks of their own.
#ifndef HLS_STREAM_H
#define HLS_STREAM_H
#include <deque>

#include "simulation.h"

namespace hls {

template <class T, int DEPTH = 0> class stream;

constexpr int default_depth = 2;  // of a channel for which none is declared

template <class T> class stream<T, 0> {
public:
    explicit stream(const char* name = "without a name", int depth = default_depth) : channel_(name, depth) {}
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;

    void write(const T& word) {
        channel_.begin_write();
        words_.push_back(word);
    }
    bool write_nb(const T& word) {
        if (full()) return false;
        write(word);
        return true;
    }

    T read() {
        channel_.begin_read();
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

    bool empty() { return channel_.is_empty(); }
    bool full() { return channel_.is_full(); }
    void operator>>(T& word) { word = read(); }
    void operator<<(const T& word) { write(word); }

    void set_depth(int depth) { channel_.set_depth(depth); }  // of a pragma STREAM
    moec_simulation::Channel& channel() { return channel_; }

private:
    moec_simulation::Channel channel_;
    std::deque<T> words_;
};

template <class T, int DEPTH> class stream : public stream<T, 0> {
public:
    explicit stream(const char* name = "without a name") : stream<T, 0>(name, DEPTH) {}
};

}  // namespace hls

namespace moec_simulation {

// What a pragma STREAM says of a channel, or of all in an array, which have no other names; one alone has that of the array.
template <class Stream> void declare(Stream& stream, const char*, int depth) { stream.set_depth(depth); }
template <class Stream, std::size_t N> void declare(Stream (&streams)[N], const char* name, int depth) {
    for (std::size_t i = 0; i < N; ++i) {
        streams[i].channel().name = N == 1 ? name : std::string(name) + "[" + std::to_string(i) + "]";
        streams[i].set_depth(depth);
    }
}

}  // namespace moec_simulation
#endif
