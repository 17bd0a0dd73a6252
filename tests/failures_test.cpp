// A device that refuses: an error that names the weight, nothing leaked, and the next call right again.

#include <gtest/gtest.h>

#include <offload/error.h>

#include "streaming.h"
#include "threads.h"

namespace offload::test {
namespace {

struct Case {
  Host host;
  Call call;
};

class Failures : public testing::TestWithParam<Case> {
 protected:
  static Shape shape(Order order, std::uint32_t seed) {
    Shape shape;
    shape.units = {2, 3, 1, 2, 3, 1, 2, 8}; // the last is as large as the ring
    shape.ring_units = 8;
    shape.batch_units = 2;
    shape.buffer_units = 1;
    shape.host = GetParam().host;
    shape.order = order;
    shape.seed = seed;
    return shape;
  }
};

/// Calls until one is refused; the message, or empty when none was.
std::string call_until_refused(Streaming& device, const SequencePtr& sequence) {
  try {
    for (int pass = 0; pass < 4; ++pass) {
      device.begin(0, sequence);
      for (const Step& step : *sequence) {
        device.visit(0, step);
      }
      device.end(0);
    }
  } catch (const Error& error) {
    device.end(0);
    return error.what();
  }
  return "";
}

TEST_P(Failures, AreReportedOnce) {
  const SequencePtr sequence = each_once(7);
  for (const Order order : {Order::copies_late, Order::compute_late, Order::random}) {
    for (std::uint32_t after = 0; after < 24; ++after) {
      SCOPED_TRACE(after);
      Streaming device(shape(order, after));
      device.link().refuse(GetParam().call, after);
      const std::string message = call_until_refused(device, sequence);
      if (GetParam().call == Call::wait_arrived) {
        EXPECT_NE(message.find("the fake device refuses"), std::string::npos) << message;
      } else if (!message.empty()) {
        EXPECT_EQ(message.find("streaming w"), 0U) << message;
        EXPECT_NE(message.find("failed: the fake device refuses"), std::string::npos) << message;
      } else {
        EXPECT_GE(after, 10U) << "a refusal was not reported";
      }
      // What was fetched ahead when it happened may be reported by the next call; after that all is well.
      call_until_refused(device, sequence);
      EXPECT_EQ(call_until_refused(device, sequence), "");
      device.visit(0, {7}); // as large as the ring: nothing is held any more
      EXPECT_EQ(device.finish(), "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Failures,
                         testing::Values(Case{Host::direct, Call::copy}, Case{Host::direct, Call::wait},
                                         Case{Host::direct, Call::record_arrived},
                                         Case{Host::direct, Call::wait_arrived}, Case{Host::staged, Call::copy},
                                         Case{Host::staged, Call::wait}, Case{Host::staged, Call::record_arrived},
                                         Case{Host::staged, Call::wait_arrived}, Case{Host::mixed, Call::copy},
                                         Case{Host::mixed, Call::record_arrived}));

TEST(Failure, OfARowOfCopiesEndsInACallThatWorks) {
  for (const Host host : {Host::direct, Host::staged, Host::mixed}) {
    Shape shape;
    shape.units.assign(8, 1);
    shape.ring_units = 4;
    shape.host = host;
    Streaming device(shape);
    const SequencePtr sequence = each_once(8);
    device.call(0, sequence);
    device.link().refuse(Call::copy, 0, 6);
    int refused = 0;
    while (!call_until_refused(device, sequence).empty()) {
      ASSERT_LT(++refused, 8);
    }
    EXPECT_GT(refused, 0);
    EXPECT_EQ(device.finish(), "");
  }
}

TEST(Failure, OfOneLaneLeavesTheOthersRight) {
  for (const Host host : {Host::direct, Host::staged, Host::mixed}) {
    for (std::uint32_t seed = 0; seed < 6; ++seed) {
      SCOPED_TRACE(seed);
      Shape shape;
      shape.units = {2, 3, 1, 2, 3, 1, 2, 8};
      shape.ring_units = 8;
      shape.batch_units = 2;
      shape.lanes = 3;
      shape.host = host;
      shape.seed = seed;
      Streaming device(shape);
      device.link().refuse(Call::copy, std::uint64_t{10} * seed, 20);
      std::atomic<int> refused = 0;
      in_parallel(shape.lanes, [&](int lane) {
        const SequencePtr sequence = each_once(7);
        for (int done = 0, tried = 0; done < 8 && tried < 1000; ++tried) {
          try {
            device.call(lane, sequence);
            ++done;
          } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("the fake device refuses to copy"), std::string::npos)
                << error.what();
            device.end(lane);
            ++refused;
          }
        }
      });
      EXPECT_GT(refused, 0);
      EXPECT_LT(refused, 100);
      EXPECT_NO_THROW(device.visit(0, {7}));
      EXPECT_EQ(device.finish(), "");
    }
  }
}

TEST(Failure, ToRecordAReaderIsToldToALaneThatWaits) {
  Shape shape;
  shape.units.assign(2, 1);
  shape.ring_units = 1;
  shape.lanes = 2;
  Streaming device(shape);
  device.acquire(0, {0});
  std::string reported;
  BlockedThread other([&] {
    try {
      device.acquire(1, {1});
    } catch (const Error& error) {
      reported = error.what();
    }
  });
  other.await_blocked();
  device.link().refuse(Call::record_used, 0);
  device.release(0, {0});
  other.join();
  EXPECT_NE(reported.find("the fake device refuses to record_used"), std::string::npos) << reported;
}

TEST(Failure, ToRecordAReaderBreaksTheStreamerForGood) {
  Shape shape;
  shape.units.assign(4, 1);
  shape.ring_units = 2;
  Streaming device(shape);
  const SequencePtr sequence = each_once(4);
  device.begin(0, sequence);
  device.acquire(0, {0});
  device.link().refuse(Call::record_used, 0);
  device.release(0, {0});
  try {
    device.acquire(0, {1});
    FAIL() << "nobody knows when the place is read";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("the fake device refuses to record_used"), std::string::npos);
  }
  EXPECT_THROW(device.begin(0, sequence), Error);
  EXPECT_EQ(device.finish(), "");
}

TEST(Failure, ToSynchronizeDoesNotKeepAStreamerFromEnding) {
  for (const Host host : {Host::direct, Host::staged}) {
    Shape shape;
    shape.units.assign(4, 1);
    shape.ring_units = 2;
    shape.host = host;
    Streaming device(shape);
    device.call(0, each_once(4));
    device.finish();
    device.link().refuse(Call::synchronize, 0, 1000);
    device.link().refuse(Call::record_arrived, 0, 1000);
  }
}

} // namespace
} // namespace offload::test
